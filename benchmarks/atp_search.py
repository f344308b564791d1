"""Compare settings of ATP on validation data: short tunings of the embedded base, one JSON line for each trial.

Every trial tunes LoRA for the same number of steps on the training data of runs/embedded_<suite>.yaml, in rows of 128
tokens, and ends with the loss in nats per token on the half of the validation parts that is used for neither training
nor calibration; test items are never used. `static-taylor` prunes once, by Taylor scores of the pretrained weights,
and then tunes LoRA with those masks. Needs TUNEPRUNE_DATA.

    python benchmarks/atp_search.py                                          every setting, one seed, 120 steps
    python benchmarks/atp_search.py --stage final --suites healthcare,legal --seeds 0,1,2 --steps 60,120,240
    python benchmarks/atp_evidence.py                                        a table and a picture of the results

Trials that are in the results are skipped, so a search that was stopped continues. Two processes divide the list with
`--share 0/2` and `--share 1/2`. The settings are in benchmarks/atp_settings.py.
"""

import argparse
import itertools
import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from atp_settings import CALIBRATION, STAGES, setting
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from tuneprune import families, methods
from tuneprune.calibration.subject import Subject
from tuneprune.config import RunConfig, load_run_file
from tuneprune.data import Data, Example, Part, encode_all, read_source
from tuneprune.data.overlap import content_fingerprint, leaks
from tuneprune.methods.base import Search
from tuneprune.model.loading import load_model
from tuneprune.pipeline.validation import Checked, check
from tuneprune.structure import spaces
from tuneprune.structure.masks import Gates
from tuneprune.structure.space import Masks
from tuneprune.train import Tuner, inject_lora

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "atp_search"
SHAPE = ("tune.max_length=128", "tune.batch_size=8", "tune.precision=bf16")
VALIDATION_BATCHES = 8
IDENTITY = ("name", "suite", "seed", "steps", "keep")
Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Trial:
    """One short tuning; `method` has ATP's options, and is empty for LoRA on the dense model."""

    name: str
    suite: str
    seed: int
    steps: int
    keep: float
    space: str
    method: dict[str, Any]

    @property
    def identity(self) -> tuple[Any, ...]:
        """The fields that identify a trial."""
        return tuple(getattr(self, key) for key in IDENTITY)


@dataclass(frozen=True)
class Material:
    """The data that all trials on one suite share."""

    config: RunConfig
    checked: Checked
    calibration: Part
    validation: list[Batch]


def material(suite: str) -> Material:
    """The suite's data, its validation parts split into calibration and validation by content."""
    config = load_run_file(ROOT / "runs" / f"embedded_{suite}.yaml", SHAPE)
    checked = check(config)
    test = [example for task in checked.tasks for example in task.examples]
    train = [e for source in config.data.train for e in read_source(source, checked.tokenizer, "train")]
    halves: tuple[list[Example], list[Example]] = ([], [])
    for source in config.data.calibration:
        examples = read_source(source, checked.tokenizer, "val")
        seen = set(leaks(examples, [*train, *test]))
        for index, example in enumerate(examples):
            if index not in seen:
                halves[int(content_fingerprint(example)[:8], 16) % 2].append(example)
    calibration, validation = (part(examples, checked, config) for examples in halves)
    stream = checked.data.stream(validation, batch_size=8, seed=0)
    num_batches = min(VALIDATION_BATCHES, len(stream) // 8)
    return Material(config, checked, calibration, [stream.next() for _ in range(num_batches)])


def part(examples: list[Example], checked: Checked, config: RunConfig) -> Part:
    """Examples as a part of a run's data."""
    encoded = encode_all(examples, checked.tokenizer, config.tune.max_length, config.data.completion_only)
    return Part(encoded, [1.0] * len(encoded.documents), ())


def thinned(part: Part, limit: int | None) -> Part:
    """At most `limit` of the part's documents, evenly spaced, because they are ordered by source."""
    if limit is None:
        return part
    chosen = [index * len(part.weights) // limit for index in range(limit)]
    documents, owners = ([values[i] for i in chosen] for values in (part.encoded.documents, part.encoded.owners))
    encoded = replace(part.encoded, documents=documents, owners=owners)
    return Part(encoded, [part.weights[i] for i in chosen], part.sources)


def validation_loss(model: PreTrainedModel, gates: Gates, masks: Masks | None, batches: list[Batch]) -> float:
    """Mean loss in nats per token under hard masks."""
    with gates(masks if masks is not None else gates.space.ones()):
        return mean_loss(model, batches)


@torch.no_grad()
def mean_loss(model: PreTrainedModel, batches: list[Batch]) -> float:
    """Mean loss in nats per token."""
    total, tokens = 0.0, 0
    for batch in batches:
        logits = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
        labels = batch["labels"][:, 1:].reshape(-1)
        total += cross_entropy(logits[:, :-1].flatten(0, 1), labels, ignore_index=-100, reduction="sum").item()
        tokens += int((labels != -100).sum())
    return total / tokens


def run(trial: Trial, shared: Material) -> dict[str, Any]:
    """Run one trial: its losses halfway and at the end, its duration and its widths."""
    config = shared.config
    model = load_model(config.model.base, None, torch.device("cpu"))
    architecture = families.describe(model)
    space = spaces.build(trial.space, architecture, model)
    tune = config.tune.model_copy(update={"steps": trial.steps, "checkpoint_every": 10**6, "log_every": 10**6})
    inject_lora(model, architecture, tune.lora, trial.seed)
    data: Data = shared.checked.data
    gates, curve = Gates(model, space), {}
    with tempfile.TemporaryDirectory() as folder:
        search = Search()

        def look(metrics: Mapping[str, Any]) -> None:
            if metrics["step"] == trial.steps // 2 and search.phase != "control":
                curve[metrics["step"]] = validation_loss(model, gates, search.masks(), shared.validation)

        options = dict(trial.method)
        parts = (data.train_part, thinned(shared.calibration, options.pop(CALIBRATION, None)))
        train, calibration = (data.stream(one, batch_size=tune.batch_size, seed=trial.seed) for one in parts)
        place = {"folder": Path(folder), "accelerator": Accelerator(cpu=True), "seed": trial.seed, "space": space}
        tuner = Tuner(model, train, calibration, tune, observe=look, **place)
        if options:
            subject = Subject(
                model, architecture, space, tuner.runtime, tuner.next_calibration, trial.steps, trial.seed
            )
            budget = config.budget.model_copy(update={"keep": trial.keep})
            search = methods.build(options).begin(subject, budget)
        tuner.run(search)
    masks = search.plan().masks(space) if trial.method else None
    curve[trial.steps] = validation_loss(model, gates, masks, shared.validation)
    widths = {name: int(mask.sum()) for name, mask in masks.items()} if masks else {}
    return {"loss": curve[trial.steps], "curve": curve, "seconds": round(tuner.result.seconds, 1), "widths": widths}


def finished() -> set[tuple[Any, ...]]:
    """The trials that are in the results."""
    lines = [line for path in sorted(RESULTS.glob("*.jsonl")) for line in path.read_text("utf8").splitlines()]
    return {tuple(json.loads(line)[key] for key in IDENTITY) for line in lines}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=STAGES, default="screen")
    parser.add_argument("--only", help="names of settings, separated by commas, instead of a stage")
    parser.add_argument("--suites", default="healthcare")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--steps", default="120")
    parser.add_argument("--keep", type=float, default=0.6, help="share of all parameters to keep")
    parser.add_argument("--share", default="0/1", help="which part of the list to run, such as 0/2")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    names = arguments.only.split(",") if arguments.only else STAGES[arguments.stage]
    lists = (names, arguments.suites.split(","), arguments.seeds.split(","), arguments.steps.split(","))
    todo = [
        Trial(name, suite, int(seed), int(steps), arguments.keep, *setting(name))
        for name, suite, seed, steps in itertools.product(*lists)
    ]
    own, of = (int(number) for number in arguments.share.split("/"))
    shared: dict[str, Material] = {}
    RESULTS.mkdir(parents=True, exist_ok=True)
    for trial in todo[own::of]:
        if trial.identity in finished():
            continue
        if trial.suite not in shared:
            shared[trial.suite] = material(trial.suite)
        row = asdict(trial) | run(trial, shared[trial.suite])
        with (RESULTS / f"{trial.suite}.jsonl").open("a", encoding="utf8") as file:
            file.write(json.dumps(row) + "\n")
        print(*trial.identity, round(row["loss"], 4), row["seconds"], flush=True)


if __name__ == "__main__":
    main()
