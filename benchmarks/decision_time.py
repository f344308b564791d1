"""Time of each one-shot method's decision, compared with one forward pass over the same calibration data.

    python benchmarks/decision_time.py --run runs/compare_healthcare.yaml

Writes `benchmarks/results/decision_time.json`. Times `begin` and `plan` of every registered one-shot method on the
dense model, and forward passes over the calibration batches that the method drew, both in every round, so that load
on the machine slows both. Also counts how the decision used the data: `passes` is how often the tokens drawn passed
through the linear that saw most of them, `backwards` the calls of autograd, `statistics` those that the method
requested with `subject.scores`. Exits with status 1 if a method makes more than one pass for each statistic, or more
than one if it requests none.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from tuneprune import methods
from tuneprune.config import RunConfig, load_run_file
from tuneprune.errors import TunePruneError
from tuneprune.pipeline.comparison_runs import entry
from tuneprune.pipeline.job import Job, prepare
from tuneprune.pipeline.record import environment
from tuneprune.pipeline.run import subject_of
from tuneprune.system.progress import Progress

ROOT = Path(__file__).resolve().parent.parent


@dataclass
class Count:
    """Counts how a decision uses model and data; passed as the store of a comparison, but stores nothing."""

    batches: list[Any] = field(default_factory=list)
    statistics: list[str] = field(default_factory=list)
    tokens: Counter[str] = field(default_factory=Counter)
    backwards: int = 0

    def get(self, statistic: str, options: Any, compute: Any, calibration: Any) -> Any:  # noqa: ANN401, ARG002
        """Note the statistic and compute it."""
        self.statistics.append(statistic)
        return compute()

    @property
    def passes(self) -> float:
        """How often the tokens that were drawn passed through the linear that saw most of them."""
        drawn = sum(batch["input_ids"].numel() for batch in self.batches)
        return max(self.tokens.values(), default=0) / drawn if drawn else 0.0


@contextmanager
def counting(model: torch.nn.Module, count: Count) -> Iterator[None]:
    """Count the tokens that reach each linear, and the calls of autograd."""

    def watched(name: str) -> Any:  # noqa: ANN401
        def forward(_: Any, inputs: tuple[Any, ...], __: Any) -> None:  # noqa: ANN401
            count.tokens[name] += inputs[0].numel() // inputs[0].shape[-1]

        return forward

    def counted(call: Any) -> Any:  # noqa: ANN401
        def backward(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401
            count.backwards += 1
            return call(*arguments, **options)

        return backward

    linears = [(name, module) for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    handles = [module.register_forward_hook(watched(name)) for name, module in linears]
    kept = torch.autograd.backward, torch.autograd.grad
    torch.autograd.backward, torch.autograd.grad = map(counted, kept)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        torch.autograd.backward, torch.autograd.grad = kept


def decision(job: Job, config: RunConfig) -> tuple[float, float, Count]:
    """Seconds of the decision, seconds of forward passes over the batches that it drew, and its counts."""
    model, count = job.fresh_model(), Count()
    subject = subject_of(job, model, job.tuner(model, config.tune, job.out))

    def calibration() -> Any:  # noqa: ANN401
        count.batches.append(subject.calibration())
        return count.batches[-1]

    watched = replace(subject, calibration=calibration, store=count)
    started = time.perf_counter()
    with counting(model, count):
        config.method.begin(watched, config.budget).plan()
    seconds = time.perf_counter() - started
    model = job.fresh_model()
    started = time.perf_counter()
    with torch.no_grad():
        for batch in count.batches:
            model(input_ids=batch["input_ids"], use_cache=False)
    return seconds, time.perf_counter() - started, count


def measure(job: Job, config: RunConfig, rounds: int) -> dict[str, Any]:
    """Medians over rounds of one method."""
    found = [decision(job, config) for _ in range(rounds)]
    count = found[0][2]
    return {
        "space": config.space,
        "decision_s": spread([one[0] for one in found]),
        "forward_s": spread([one[1] for one in found]) if count.batches else None,
        "over_forward": spread([one[0] / one[1] for one in found]) if count.batches else None,
        "batches": len(count.batches),
        "passes": round(count.passes, 3),
        "backwards": count.backwards,
        "statistics": count.statistics,
        "is_one_pass": count.passes <= max(len(count.statistics), 1),
    }


def spread(numbers: list[float]) -> dict[str, float]:
    """Median and extremes."""
    return {"median": statistics.median(numbers), "low": min(numbers), "high": max(numbers)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=ROOT / "runs" / "compare_healthcare.yaml")
    parser.add_argument("--methods", help="default: every one-shot method; options as in tuneprune compare")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], help="key.path=value")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "decision_time.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    base = load_run_file(arguments.run, [*arguments.set, "reference=false", "evaluate.limit=1"])
    one_shot = [name for name, method in methods.registry().items() if method.one_shot]
    rows: dict[str, Any] = {}
    machine: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for index, text in enumerate(arguments.methods.split(",") if arguments.methods else one_shot):
            one = entry(text, base)
            config = base.model_copy(update={"method": one.method, "space": one.space})
            try:
                job = prepare(config, Path(folder) / str(index), resume=False, progress=Progress())
                rows[one.label] = measure(job, config, arguments.rounds)
                machine = environment(job)
            except TunePruneError as error:
                rows[one.label] = {"refused": str(error)}
            print(f"{one.label}: {json.dumps(rows[one.label])}")
    rows_of = {"batch_size": base.tune.batch_size, "max_length": base.tune.max_length}
    content = {
        "settings": {"run": arguments.run.name, "rounds": arguments.rounds, **rows_of, "keep": base.budget.keep},
        "load_average_after": os.getloadavg()[0],
        "environment": machine,
        "methods": rows,
    }
    arguments.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf8")
    print(arguments.out)
    sys.exit(any(row.get("is_one_pass") is False for row in rows.values()))


if __name__ == "__main__":
    main()
