"""From a pruned model in memory to files that others load, and the proof that they say the same."""

from collections.abc import Callable, Iterator, Mapping, Sequence

from transformers import PretrainedConfig

from tuneprune import families
from tuneprune.export.conversion import convert
from tuneprune.export.hf import Loader, weight_bytes, write
from tuneprune.export.memory import memory_use
from tuneprune.export.placing import check_replaceable, placed
from tuneprune.export.proof import Probe, prove, take_probe
from tuneprune.export.reference import Reference, load_exported, take_reference
from tuneprune.export.shape import Shape, foresee
from tuneprune.export.shards import check_size
from tuneprune.export.targets import HUGGING_FACE, build, registry
from tuneprune.export.targets.base import Target
from tuneprune.methods.base import Method
from tuneprune.structure.architecture import Architecture
from tuneprune.structure.budget import Budget, allocate, units_per_step
from tuneprune.structure.space import PruningSpace

__all__ = [
    "Loader",
    "Probe",
    "Reference",
    "Shape",
    "Target",
    "check",
    "check_replaceable",
    "check_size",
    "convert",
    "foresee",
    "load_exported",
    "memory_use",
    "named",
    "placed",
    "prove",
    "registry",
    "stock_holds",
    "take_probe",
    "take_reference",
    "weight_bytes",
    "write",
]


def named(texts: Sequence[str]) -> dict[str, Target]:
    """The targets beyond the Hugging Face folder, by a label that a folder can be named after.

    Raises:
        UnsupportedExport: an unknown target.
        ConfigError: an option the target has not, or a value out of range.
    """
    return {text.replace(":", "-").replace("=", "-"): build(text) for text in texts if text != HUGGING_FACE}


def check(texts: Sequence[str], shape: Callable[[], Shape]) -> None:
    """Refuse, before any training, what cannot be exported.

    Args:
        shape: what the run may make of the model; only asked for where a target needs to know.

    Raises:
        UnsupportedExport: a target that does not exist, whose packages are missing, or that cannot hold the shape.
    """
    targets = named(texts).values()
    for target in targets:
        target.require()
    foreseen = shape() if targets else None
    for target in targets:
        assert foreseen is not None
        target.refuse(foreseen)


def stock_holds(
    config: PretrainedConfig, architecture: Architecture, space: PruningSpace, method: Method, budget: Budget
) -> bool | None:
    """Whether a stock class holds what the method makes of the model; None where that depends on its decision.

    Layers of free widths do not count as such a case, though they may turn out equal.
    """
    kinds = {group.kind for group in space.groups}
    budget = method.constrained(budget)
    is_even = budget.per_layer == "uniform" and kinds <= {"kv_group", "mlp_channel", "expert"}
    if method.adds(space) or not (is_even or kinds in ({"block"}, {"hidden"})):
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
