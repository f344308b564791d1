"""Compare methods with equal recovery on validation data: runs of the embedded base, one JSON line for each trial.

Every trial takes the same optimiser steps on the training data of runs/embedded_<suite>.yaml, 1,024 tokens each: ATP
decides in the first of them, a one-shot method before them, and the rest tunes the smaller model. `dense` tunes the
base model alike. The result is the loss in nats per token on the half of the validation parts that is used for neither
training nor calibration; test items are never used. Needs TUNEPRUNE_DATA.

    python benchmarks/recovery.py --methods dense,atp,flap --recover r16,r64 --seeds 0,1,2
    python benchmarks/recovery.py --table                                    write benchmarks/results/recovery/README.md

Trials that are in the results are skipped, so a campaign that was stopped continues.
"""

import argparse
import itertools
import json
import math
import tempfile
import time
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from accelerate import Accelerator
from atp_search import ROOT, Material, material, mean_loss

from tuneprune import families, methods
from tuneprune.calibration.subject import Subject
from tuneprune.compress import compress
from tuneprune.compress.compensate import compensate_plan
from tuneprune.config.schema import like_tune
from tuneprune.methods.base import Search
from tuneprune.model.loading import load_model
from tuneprune.structure import spaces
from tuneprune.train import TuneConfig, Tuner, make_trainable, merge_lora

RESULTS = ROOT / "benchmarks" / "results" / "recovery"
COMPENSATED = "+obs"
"""Behind a method's name: its plan is compensated by least squares before the cut."""
METHODS: dict[str, dict[str, Any]] = {
    "dense": {},
    "atp": {"name": "atp"},
    "atp-masked": {"name": "atp", "lora_aware": False},
    "atp-static": {"name": "atp", "decision": "static"},
    "atp-end": {"name": "atp", "cut": "end"},
    "atp-15": {"name": "atp", "control_limit": 15},
    "atp-60": {"name": "atp", "control_limit": 60},
    "atp-training": {"name": "atp", "gate_gradients": "training"},
    "atp-training-masked": {"name": "atp", "gate_gradients": "training", "lora_aware": False},
    "atp-calibration": {"name": "atp", "gate_gradients": "calibration"},
    "atp-plain": {"name": "atp", "compensate": False},
    "flap": {"name": "flap"},
    "llm_pruner": {"name": "llm_pruner"},
    "wanda_sp": {"name": "wanda_sp"},
    "magnitude": {"name": "magnitude"},
    "loraprune": {"name": "loraprune"},
    "hesso": {"name": "hesso"},
}
RECOVERIES: dict[str, dict[str, Any]] = {
    **{f"r{rank}": {"lora": {"rank": rank}} for rank in (8, 16, 32, 64, 128)},
    **{f"r64-{rate:g}": {"lora": {"rank": 64}, "learning_rate": rate} for rate in (1e-3, 4e-3)},
    "r64-no-second-warmup": {"lora": {"rank": 64}, "warmup_share": 0.0},
    **{f"all-{rate:g}": {"train": "all", "learning_rate": rate} for rate in (3e-4, 1e-3, 2e-3)},
    "blocks-0.001": {"train": "blocks", "learning_rate": 1e-3},
}
IDENTITY = ("method", "recover", "suite", "seed", "steps", "keep")


def run(method: str, recover: str, seed: int, steps: int, keep: float, shared: Material) -> dict[str, Any]:
    """One trial: its validation loss, seconds by part, and the share of all parameters that is left."""
    config = shared.config
    quiet = {"steps": steps, "checkpoint_every": 10**6, "log_every": 10**6, "precision": "fp32"}
    base = config.tune.model_dump() | quiet
    after = TuneConfig(**like_tune(base, RECOVERIES[recover]))
    rank = after.lora.rank if after.train == "lora" else 64
    before = TuneConfig(**like_tune(base, {"lora": {"rank": rank}}))
    model = load_model(config.model.base, None, torch.device("cpu"))
    architecture = families.describe(model)
    total, seconds = sum(p.numel() for p in model.parameters()), {}
    with tempfile.TemporaryDirectory() as folder:
        place = {"folder": Path(folder), "accelerator": Accelerator(cpu=True), "seed": seed}
        parts = (shared.checked.data.train_part, shared.calibration)
        streams = [shared.checked.data.stream(part, batch_size=base["batch_size"], seed=seed) for part in parts]
        first = 0
        if method != "dense":
            name, compensated = method.removesuffix(COMPENSATED), method.endswith(COMPENSATED)
            chosen = methods.build(METHODS[name])
            space = spaces.build("width", architecture, model)
            if not chosen.one_shot:
                make_trainable(model, architecture, before, seed)
            tuner = Tuner(model, *streams, before, space=space, **place)
            subject = Subject(model, architecture, space, tuner.runtime, tuner.next_calibration, steps, seed)
            started = time.perf_counter()
            search = chosen.begin(subject, config.budget.model_copy(update={"keep": keep}))
            if not chosen.one_shot:
                tuner.run(search)
            plan = search.plan()
            merge_lora(model, architecture)
            if compensated:
                batches = [tuner.next_calibration() for _ in range(16)]
                runtime = tuner.runtime
                compensate_plan(
                    model, space, plan, batches, runtime.loss, runtime.average, damping=1e-4, accepts=runtime.accepts
                )
            model, first = compress(model, architecture, space, plan), tuner.result.steps
            seconds["before_cut"] = time.perf_counter() - started
            architecture = families.describe_config(model.config)
        at_cut = mean_loss(model.eval(), shared.validation)
        if first < steps:
            make_trainable(model, architecture, after, seed)
            tuner = Tuner(model, *streams, after, first=first, **place)
            started = time.perf_counter()
            tuner.run(Search("recover"))
            seconds["after_cut"] = time.perf_counter() - started
            merge_lora(model, architecture)
    return {
        "loss": mean_loss(model.eval(), shared.validation),
        "loss_at_cut": at_cut,
        "steps_before_cut": first,
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "kept": round(sum(p.numel() for p in model.parameters()) / total, 4),
    }


def results() -> list[dict[str, Any]]:
    """All trials so far."""
    paths = sorted(RESULTS.glob("*.jsonl"))
    return [json.loads(line) for path in paths for line in path.read_text("utf8").splitlines()]


def table() -> str:
    """Perplexities as shares of the dense model's, tuned with the same capacity and with rank 16, over all seeds."""
    rows = results()
    losses: dict[tuple[Any, ...], list[float]] = {}
    for row in rows:
        losses.setdefault(tuple(row[key] for key in IDENTITY if key != "seed"), []).append(row["loss"])
    lines = [
        "# Recovery",
        "",
        "Written by `python benchmarks/recovery.py --table`: validation losses of the embedded base,",
        "[explained here](../../../docs/methods/atp-evidence.md#with-equal-recovery). A dense loss is the mean over",
        "the seeds that ran. The machine was shared, so seconds in the trials cannot be compared.",
        "",
        "| suite | steps | keep | recovery | method | seeds | nats a token | of dense, same recovery | of dense, r16 |",
        "|---|---:|---:|---|---|---:|---:|---:|---:|",
    ]
    for (method, recover, suite, steps, keep), found in sorted(
        losses.items(), key=lambda item: str(item[0][2:] + item[0][:2])
    ):
        shares = []
        for capacity in (recover, "r16"):
            dense = [row for row in rows if (row["method"], row["suite"], row["steps"]) == ("dense", suite, steps)]
            known = [row["loss"] for row in dense if row["recover"] == capacity]
            shares.append(f"{100 * math.exp(fmean(known) - fmean(found)):.1f} %" if known else "")
        lines.append(
            f"| {suite} | {steps} | {keep} | {recover} | {method} | {len(found)} | {fmean(found):.3f} |"
            f" {shares[0]} | {shares[1]} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default="dense,atp,flap,llm_pruner")
    parser.add_argument("--recover", default="r16,r64")
    parser.add_argument("--suites", default="healthcare")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--steps", default="120")
    parser.add_argument("--keep", type=float, default=0.6, help="share of all parameters to keep")
    parser.add_argument("--table", action="store_true", help="write a table of the results and end")
    arguments = parser.parse_args()
    if arguments.table:
        (RESULTS / "README.md").write_text(table(), encoding="utf8")
        return
    torch.set_num_threads(1)
    RESULTS.mkdir(parents=True, exist_ok=True)
    shared: dict[str, Material] = {}
    lists = (arguments.suites, arguments.seeds, arguments.steps, arguments.recover, arguments.methods)
    for suite, seed, steps, recover, method in itertools.product(*(values.split(",") for values in lists)):
        keep = 1.0 if method == "dense" else arguments.keep
        identity = dict(zip(IDENTITY, (method, recover, suite, int(seed), int(steps), keep), strict=True))
        if any(identity.items() <= row.items() for row in results()):
            continue
        if suite not in shared:
            shared[suite] = material(suite)
        row = identity | run(method, recover, int(seed), int(steps), keep, shared[suite])
        with (RESULTS / f"{suite}.jsonl").open("a", encoding="utf8") as file:
            file.write(json.dumps(row) + "\n")
        print(
            *identity.values(),
            row["steps_before_cut"],
            round(row["loss_at_cut"], 3),
            round(row["loss"], 4),
            row["seconds"],
            flush=True,
        )


if __name__ == "__main__":
    main()
