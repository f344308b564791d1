"""Compare settings of ATP on validation data: short tunings of the embedded base, one JSON line a trial.

Every trial tunes LoRA for the same number of steps on the training data of runs/embedded_<suite>.yaml, in rows of 128
tokens, and ends with the loss in nats a token on the half of the validation parts that neither training nor calibration
sees; test items are never touched. `static-taylor` is prune, then tune: one Taylor decision on the pretrained weights,
then LoRA under it. Needs TUNEPRUNE_DATA.

    python benchmarks/atp_search.py                                          every setting, one seed, 120 steps
    python benchmarks/atp_search.py --stage final --suites healthcare,legal --seeds 0,1,2 --steps 60,120,240
    python benchmarks/atp_evidence.py                                        what is known

A trial that stands in the results is skipped, so a search that was stopped goes on. Two processes share a list with
`--share 0/2` and `--share 1/2`.
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
CALIBRATION = "calibration_documents"
"""Among a trial's options: how many documents calibrate, where not all do."""
IDENTITY = ("name", "suite", "seed", "steps", "keep")
Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Trial:
    """One short tuning; `method` holds ATP's options, and is empty for LoRA on the dense model."""

    name: str
    suite: str
    seed: int
    steps: int
    keep: float
    space: str
    method: dict[str, Any]

    @property
    def identity(self) -> tuple[Any, ...]:
        """What tells trials apart."""
        return tuple(getattr(self, key) for key in IDENTITY)


@dataclass(frozen=True)
class Material:
    """What all trials on one suite share."""

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
    """So many of the part's documents, evenly spaced: they stand source by source."""
    if limit is None:
        return part
    chosen = [index * len(part.weights) // limit for index in range(limit)]
    documents, owners = ([values[i] for i in chosen] for values in (part.encoded.documents, part.encoded.owners))
    encoded = replace(part.encoded, documents=documents, owners=owners)
    return Part(encoded, [part.weights[i] for i in chosen], part.sources)


@torch.no_grad()
def validation_loss(model: PreTrainedModel, gates: Gates, masks: Masks | None, batches: list[Batch]) -> float:
    """Mean loss in nats a token under hard masks."""
    total, tokens = 0.0, 0
    with gates(masks if masks is not None else gates.space.ones()):
        for batch in batches:
            logits = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
            labels = batch["labels"][:, 1:].reshape(-1)
            total += cross_entropy(logits[:, :-1].flatten(0, 1), labels, ignore_index=-100, reduction="sum").item()
            tokens += int((labels != -100).sum())
    return total / tokens


def run(trial: Trial, shared: Material) -> dict[str, Any]:
    """One trial: its losses, at several points and at the end, and its seconds."""
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


START = {  # the defaults when the search began: every setting below is named by what it changes here
    "name": "atp",
    "decision": "dynamic",
    "decisions": "on_budget",
    "prior": "taylor",
    "prior_batches": 16,
    "prior_momentum": 0.9,
    "prior_scale": 1.0,
    "generator": "transformer",
    "generator_learning_rate": 1e-3,
    "control_share": 0.25,
    "control_limit": None,
    "gradual": True,
    "decision_every": 1,
    "temperature": 0.4,
    "lora_aware": True,
    "regulariser": "linear_decay",
    "decay_share": 0.5,
    "compensate": False,
}
STATIC = START | {"control_share": 0.0, "generator": "free", "lora_aware": False, "regulariser": "none"}
SAMPLED = {"decisions": "sampled", "prior": "none", "regulariser": "lasso", "control_share": 0.5}
MASKED = {"lora_aware": False, "regulariser": "none"}
COMPENSATED = {"compensate": True}
LIMITED = {"control_share": 0.5, "control_limit": 30}
CHANGES: dict[str, dict[str, Any]] = {
    "start": {},
    "masked-lora": MASKED,
    "static-decision": {"decision": "static"},
    "control-0.1": {"control_share": 0.1},
    "control-0.5": {"control_share": 0.5},
    "prior-none": {"prior": "none"},
    "prior-magnitude": {"prior": "magnitude"},
    "prior-batches-4": {"prior_batches": 4},
    "prior-batches-64": {"prior_batches": 64},
    "momentum-0.5": {"prior_momentum": 0.5},
    "momentum-1": {"prior_momentum": 1.0},
    "generator-free": {"generator": "free"},
    "generator-lr-1e-2": {"generator_learning_rate": 1e-2},
    "generator-lr-1e-4": {"generator_learning_rate": 1e-4},
    "not-gradual": {"gradual": False},
    "every-4": {"decision_every": 4},
    "temperature-0.1": {"temperature": 0.1},
    "temperature-1": {"temperature": 1.0},
    "lasso": {"regulariser": "lasso"},
    "proximal": {"regulariser": "proximal"},
    "no-regulariser": {"regulariser": "none"},
    "decay-0.2": {"decay_share": 0.2},
    "decay-1": {"decay_share": 1.0},
    "calibration-16": {CALIBRATION: 16},
    "calibration-128": {CALIBRATION: 128},
    "sampled": SAMPLED,
    "sampled-alpha-1": SAMPLED | {"budget_weight": 1.0},
    "sampled-alpha-10": SAMPLED | {"budget_weight": 10.0},
    "sampled-beta-0.03": SAMPLED | {"lasso_weight": 0.03},
    "sampled-decay": SAMPLED | {"regulariser": "linear_decay"},
    "sampled-prior": SAMPLED | {"prior": "taylor"},
    "compensate": COMPENSATED,
    "compensate-masked": COMPENSATED | MASKED,
    "compensate-static-decision": COMPENSATED | {"decision": "static"},
    "compensate-masked-static-decision": COMPENSATED | MASKED | {"decision": "static"},
    "compensate-control-0.1": COMPENSATED | {"control_share": 0.1},
    "compensate-control-0.5": COMPENSATED | {"control_share": 0.5},
    "compensate-control-0.75": COMPENSATED | {"control_share": 0.75},
    "compensate-limit-30": COMPENSATED | LIMITED,
    "compensate-limit-30-ridge-0.1": COMPENSATED | LIMITED | {"compensate_ridge": 0.1},
    "compensate-limit-30-static-decision": COMPENSATED | LIMITED | {"decision": "static"},
    "compensate-limit-30-generator-frozen": COMPENSATED | LIMITED | {"generator_learning_rate": 1e-9},
    "limit-30": LIMITED,
    "compensate-ridge-0.1": COMPENSATED | {"compensate_ridge": 0.1},
    "compensate-ridge-0.001": COMPENSATED | {"compensate_ridge": 0.001},
    "compensate-ridge-0.3": COMPENSATED | {"compensate_ridge": 0.3},
    "compensate-ridge-1": COMPENSATED | {"compensate_ridge": 1.0},
    **{
        f"compensate-ridge-0.3-control-{share}": COMPENSATED | {"compensate_ridge": 0.3, "control_share": share}
        for share in (0.05, 0.125, 0.5, 0.75)
    },
}
SPECIAL: dict[str, dict[str, Any]] = {
    "dense-lora": {},
    "static-taylor": STATIC,
    "static-taylor-compensate": STATIC | COMPENSATED,
    "static-taylor-compensate-ridge-0.1": STATIC | COMPENSATED | {"compensate_ridge": 0.1},
    "static-taylor-compensate-ridge-0.3": STATIC | COMPENSATED | {"compensate_ridge": 0.3},
    "atp": {"name": "atp"},
    "atp-paper": {"name": "atp-paper"},
}
OTHER_SPACES = [f"{name}@{space}" for space in ("head_dim", "disp") for name in ("static-taylor", "compensate")]
STAGES = {
    "screen": [*SPECIAL, *CHANGES, *OTHER_SPACES],
    "final": ["dense-lora", "static-taylor", "static-taylor-compensate", "compensate-limit-30"],
}


def setting(name: str) -> tuple[str, dict[str, Any]]:
    """Space and options of a named setting.

    `default+` before a change applies it to the defaults of today, not to those the search began with; `@space` behind
    the name chooses another space than width.

    Raises:
        SystemExit: no such setting.
    """
    plain, _, space = name.partition("@")
    known = SPECIAL | {change: START | options for change, options in CHANGES.items()}
    known |= {f"default+{change}": {"name": "atp"} | options for change, options in CHANGES.items()}
    if plain not in known:
        raise SystemExit(f"no setting `{plain}`; there are {', '.join(known)}")
    return space or "width", known[plain]


def finished() -> set[tuple[Any, ...]]:
    """The trials that stand in the results."""
    lines = [line for path in sorted(RESULTS.glob("*.jsonl")) for line in path.read_text("utf8").splitlines()]
    return {tuple(json.loads(line)[key] for key in IDENTITY) for line in lines}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=STAGES, default="screen")
    parser.add_argument("--only", help="settings by name, instead of a stage")
    parser.add_argument("--suites", default="healthcare")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--steps", default="120")
    parser.add_argument("--keep", type=float, default=0.6, help="of all parameters")
    parser.add_argument("--share", default="0/1", help="which part of the list, such as 0/2")
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
