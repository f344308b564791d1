"""Compare latency budgets by their table with the time that the whole pruned models take.

    python benchmarks/latency_budget.py

Writes `benchmarks/results/latency_budget.json`. Measures a table for each subject (the embedded base, and a LLaMA with
random weights and realistic widths), decides by random scores at several `keep`, cuts, and measures dense and pruned in
turns, on one thread by its CPU time, which other processes do not change. `table_share` is the share of time by the
table, which the budget counts, and `measured_share` the dense model's speed over the pruned one's.
"""

import argparse
import json
import os
import platform
import subprocess
import time
from copy import deepcopy
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, PreTrainedModel

from tuneprune import families
from tuneprune.budget import Budget, allocate
from tuneprune.budget.latency_table import Phase
from tuneprune.compress import cut
from tuneprune.errors import UnreachableBudget
from tuneprune.evaluate import measure_latency, measure_speed
from tuneprune.model.loading import load_config
from tuneprune.pipeline.budget_costs import Costs
from tuneprune.structure import spaces
from tuneprune.structure.plan import Plan

ROOT = Path(__file__).resolve().parent.parent
KEEPS = (0.8, 0.65)
SETTINGS: tuple[tuple[Phase, int], ...] = (("decode", 1), ("prefill", 1))
SPEED: dict[str, Any] = {"new_tokens": 16, "repeats": 7, "clock": time.thread_time}
INVERSE = {"median": "median", "low": "high", "high": "low"}
"""A share of time is the inverse of a ratio of speeds."""
REAL_WIDTHS = {
    "vocab_size": 4096,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 4,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "max_position_embeddings": 1024,
}


def subject(config: PretrainedConfig, phase: Phase, batch_size: int) -> dict[str, Any]:
    """One model in one setting, at every `keep`."""
    torch.manual_seed(0)
    dense: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    space = spaces.build("width", families.describe(dense), dense)
    started = time.perf_counter()
    measuring = {"device": torch.device("cpu"), "dtype": torch.float32, "clock": time.thread_time}
    table = measure_latency(config, phase=phase, batch_size=batch_size, **measuring)
    costs = Costs(replace(space, latency=table.on(space)), Budget(of="latency"), table)
    seconds = time.perf_counter() - started
    rows = [row(dense, costs, keep) for keep in KEEPS]
    return {"table_s": round(seconds, 1), "table": table.model_dump(mode="json"), "budgets": rows}


def row(dense: PreTrainedModel, costs: Costs, keep: float) -> dict[str, Any]:
    """One budget: decide, cut and measure; the message if it cannot be reached."""
    assert costs.table is not None
    assert costs.space.latency is not None
    draw = torch.Generator().manual_seed(1)
    scores = {group.name: torch.rand(group.size, generator=draw) for group in costs.space.groups}
    budget = costs.budget.model_copy(update={"keep": keep})
    try:
        plan = Plan.from_masks(allocate(scores, costs.space, budget, "local"), costs.space)
    except UnreachableBudget as error:
        return {"keep": keep, "refused": str(error)}
    widths = plan.widths(costs.space)
    small = cut(deepcopy(dense), families.describe(dense), costs.space, plan)
    speed = measure_speed({"dense": dense, "pruned": small}, batch_sizes=(costs.table.batch_size,), **SPEED)
    (setting,) = (one for one in speed["settings"] if one["phase"] == costs.table.phase)
    return {
        "keep": keep,
        "table_share": costs.space.latency.count(widths) / costs.space.latency.dense,
        "measured_share": {name: 1 / setting["ratio"][other] for name, other in INVERSE.items()},
        "share_of_parameters": costs.space.count(widths) / costs.space.num_parameters,
    }


def environment() -> dict[str, Any]:
    """Machine and versions."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf8").splitlines() if Path("/proc/cpuinfo").exists() else []
    command = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    return {
        "cpu": next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None),
        "cores": os.cpu_count(),
        "load_average": list(os.getloadavg()),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "tuneprune")},
        "commit": subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "latency_budget.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    configs = {"embedded base": load_config(str(ROOT / "embedded" / "base")), "real widths": LlamaConfig(**REAL_WIDTHS)}
    found = {
        f"{name}, {phase}, batch size {batch_size}": subject(config, phase, batch_size)
        for name, config in configs.items()
        for phase, batch_size in SETTINGS
    }
    content = {"environment": environment(), "settings": found}
    arguments.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf8")
    for name, one in found.items():
        for found_row in (each for each in one["budgets"] if "table_share" in each):
            table, measured = found_row["table_share"], found_row["measured_share"]["median"]
            print(f"{name}: keep {found_row['keep']}: {table:.3f} by the table, {measured:.3f} measured")


if __name__ == "__main__":
    main()
