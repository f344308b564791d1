"""From a pruned model in memory to files that others load, and the proof that they say the same."""

from collections.abc import Iterator, Mapping, Sequence

from transformers import PretrainedConfig

from tuneprune import families
from tuneprune.errors import UnsupportedExport, suggest
from tuneprune.export.hf import Loader, weight_bytes, write
from tuneprune.export.proof import Probe, prove, take_probe
from tuneprune.methods.base import Method
from tuneprune.structure.architecture import Architecture
from tuneprune.structure.budget import Budget, allocate, units_per_step
from tuneprune.structure.space import PruningSpace

__all__ = ["Loader", "Probe", "check", "prove", "stock_holds", "take_probe", "weight_bytes", "write"]

TARGETS = ("hf",)
PLANNED = ("gguf", "vllm")


def check(targets: Sequence[str], stock: bool | None) -> None:
    """Refuse, before any training, what cannot be exported.

    Args:
        stock: what `stock_holds` says of the run.

    Raises:
        UnsupportedExport: a target that does not exist, or not yet.
    """
    for target in targets:
        if target in PLANNED:
            raise UnsupportedExport(f"Export `{target}` is not there yet. {_way_out(stock)}")
        if target not in TARGETS:
            known = ", ".join(TARGETS)
            raise UnsupportedExport(f"Unknown export `{target}`; known exports are {known}.{suggest(target, TARGETS)}")


def stock_holds(
    config: PretrainedConfig, architecture: Architecture, space: PruningSpace, method: Method, budget: Budget
) -> bool | None:
    """Whether a stock class holds what the method makes of the model; None where that depends on its decision.

    Layers of free widths do not count as such a case, though they may turn out equal.
    """
    kinds = {group.kind for group in space.groups}
    budget = method.constrained(budget)
    is_even = budget.per_layer == "uniform" and kinds <= {"kv_group", "mlp_channel", "expert"}
    if not method.is_plain(space) or not (is_even or kinds in ({"block"}, {"hidden"})):
        return False
    if kinds == {"block"}:
        return True
    options = _streams(space, budget) if kinds == {"hidden"} else _heads(space, budget)
    held = {families.uniform_config(config, architecture, space, widths) is not None for widths in options}
    return held.pop() if len(held) == 1 else None


def _streams(space: PruningSpace, budget: Budget) -> Iterator[Mapping[str, int]]:
    """The width of the residual stream that meets the budget; a head of its own (SliceGPT) may narrow a tied one."""
    (group,) = space.groups
    step = units_per_step(group, budget.multiple_of)
    widest = int(allocate(space.ones(), space, budget)[group.name].sum())
    for width in range(step if space.tied else widest, widest + 1, step):
        yield {group.name: width}


def _heads(space: PruningSpace, budget: Budget) -> Iterator[Mapping[str, int]]:
    """Every number of KV groups that all layers may keep; how many channels or experts matters to no family."""
    whole = {group.name: group.size for group in space.groups}
    heads = [group for group in space.groups if group.kind == "kv_group"]
    if not heads:
        yield whole
        return
    step = units_per_step(heads[0], budget.multiple_of)
    for kept in range(step, heads[0].size + 1, step):
        yield whole | {group.name: kept for group in heads}


def _way_out(stock: bool | None) -> str:
    """What works instead, given whether the result is a stock model."""
    if stock:
        return "Use export: [hf]; the result is a stock model, which other tools can convert."
    return (
        "Use export: [hf]; with space `width` and budget.per_layer=uniform it is a stock model for most families and"
        " methods, which other tools can convert."
    )
