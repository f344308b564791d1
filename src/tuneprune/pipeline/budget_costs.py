"""A run's budget as a share of its model, and the measured times that a latency budget counts."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import PretrainedConfig

from tuneprune import evaluate, families
from tuneprune.budget import Budget, check_reachable
from tuneprune.budget.amounts import bytes_written, milliseconds_written
from tuneprune.budget.latency_table import LatencyTable, refuse_untimed
from tuneprune.errors import ConfigError, TunePruneError, UnreachableBudget
from tuneprune.methods import registry
from tuneprune.methods.base import Method
from tuneprune.model.loading import skeleton, stored_dtype
from tuneprune.structure import spaces
from tuneprune.structure.space import PruningSpace
from tuneprune.structure.spaces import SPACES
from tuneprune.system.processes import check_launcher, world_size

TABLE = "latency.json"
"""Name of the file with the times that a run's decision is based on."""


@dataclass(frozen=True)
class Costs:
    """A space, the budget as a share of it, and the table of measured times if the budget counts time."""

    space: PruningSpace
    budget: Budget
    table: LatencyTable | None


def costs_of(budget: Budget, config: PretrainedConfig, space: PruningSpace, earlier: Path | None = None) -> Costs:
    """The costs of a model's units, as the budget counts them.

    Times come from the table that the budget names, else from the run's own `earlier` table if it exists, else they
    are measured now, which takes seconds to a minute.

    Raises:
        ConfigError: an `at_most` that removes nothing, a space without times, a table that does not fit.
    """
    if budget.of != "latency":
        return Costs(space, budget.on(space, stored_dtype(config).itemsize), None)
    refuse_untimed(space)
    path = budget.table or (earlier if earlier is not None and earlier.exists() else None)
    table = measure_times(config, budget) if path is None else LatencyTable.load(path)
    for name in ("phase", "batch_size"):
        asked, found = getattr(budget, name), getattr(table, name)
        if asked not in (None, found):
            raise ConfigError(
                f"budget.{name}={asked}, but the table {path} was measured with {name}={found}. Leave budget.{name}"
                " out, or leave budget.table out to have another one measured."
            )
    space = replace(space, latency=table.on(space))
    resolved = {"phase": table.phase, "batch_size": table.batch_size, "table": None}  # plans must not contain paths
    return Costs(space, budget.on(space).model_copy(update=resolved), table)


def measure_times(config: PretrainedConfig, budget: Budget) -> LatencyTable:
    """Measure a table on this machine, in the precision that a run computes in.

    Raises:
        ConfigError: several processes, whose tables would differ.
    """
    check_launcher()
    if world_size() > 1:
        raise ConfigError(
            "budget.of=latency: several processes would each measure a different table. Measure one with"
            " `tuneprune latency MODEL --out latency.json`, and name it as budget.table."
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return evaluate.measure_latency(
        config,
        device=device,
        dtype=torch.float32 if device.type == "cpu" else stored_dtype(config),
        phase=budget.phase or "decode",
        batch_size=budget.batch_size or 1,
        multiple_of=budget.multiple_of,
    )


def size_text(costs: Costs, dtype: torch.dtype) -> str:
    """The target size of the pruned model, or its target latency by the table."""
    target, dense = costs.budget.target(costs.space), costs.budget.dense(costs.space)
    if costs.table is not None:
        times = f"{milliseconds_written(target)} of {milliseconds_written(dense)} a forward pass ({target / dense:.1%})"
        return f"{times}, {costs.table.what}"
    precision = str(dtype).removeprefix("torch.")
    size = bytes_written(target * dtype.itemsize)
    return f"{target:,} parameters ({target / dense:.1%} of all), {size} of {precision} weights"


def check_reach(costs: Costs, method: Method, config: PretrainedConfig) -> None:
    """Refuse a budget that the method, or any method on this space, cannot meet, with the spaces that can.

    Raises:
        TunePruneError: names the causes and what to change.
    """
    try:
        method.check(costs.space, costs.budget)  # it may reach less than others, so its numbers come first
        check_reachable(costs.space, costs.budget)
    except UnreachableBudget as error:
        raise UnreachableBudget(f"{error}{_other_spaces(costs, method, config)}") from None


def _other_spaces(costs: Costs, method: Method, config: PretrainedConfig) -> str:
    """A sentence that names other spaces which reach the budget; empty if there are none."""
    budget = costs.budget
    if budget.of == "latency" or budget.is_exact:
        return ""
    architecture, found = families.describe_config(config), list[str]()
    for name in (name for name in SPACES if name != costs.space.name):
        try:
            space = spaces.build(name, architecture, skeleton(config))
            check_reachable(space, budget)
            if name in method.spaces:
                method.check(space, budget)
        except TunePruneError:
            continue
        able = ", ".join(known for known, kind in registry().items() if name in kind.spaces)
        found.append(f"`{name}`" if name in method.spaces else f"`{name}` (methods {able})")
    return f" Or choose space {' or '.join(found)}." if found else ""
