"""Explains why a budget cannot be met, and which changes of the run file would help."""

import math
from collections.abc import Callable, Iterator

from tuneprune.budget.chains import alignment
from tuneprune.budget.request import Budget
from tuneprune.errors import ConfigError
from tuneprune.structure.space import Kind, PruningSpace
from tuneprune.structure.spaces import UNIT_NAMES

Reach = Callable[[Budget], tuple[int, int]]
"""Gives the smallest and largest cost of decisions under another budget, with what the method adds."""


def explanation(space: PruningSpace, budget: Budget, reach: Reach, added: int) -> str:
    """The whole message: what was asked, what is possible, why, and what to do.

    Args:
        added: the cost of what the method adds to the smallest model.
    """
    low, high = reach(budget)
    if low - added >= budget.dense(space):
        head = f"{budget.name} of {budget.counted}: space `{space.name}` can remove nothing from this model."
    else:
        lowest = budget.smallest_keep(space, low)
        highest = math.floor(budget.share(space, high) * 1e4) / 1e4
        lengths = (
            f" ({budget.written(space, low)} to {budget.written(space, high)})"
            if budget.of in ("bytes", "latency")
            else ""
        )
        head = (
            f"{budget.name} of {budget.counted} is below what space `{space.name}` can reach on this model:"
            f" {f'{lowest:.4f} to {highest:.4f}' if lowest < highest else f'{lowest:.4f} only'}{lengths}."
        )
    cures = ", or ".join(_cures(space, budget, reach))
    said = f"{cures[:1].upper()}{cures[1:]}" if cures else "Keep all of it, or choose another space or model"
    return " ".join([head, *_causes(space, budget, low, added), f"{said}."])


def _causes(space: PruningSpace, budget: Budget, low: int, added: int) -> Iterator[str]:
    """Sentences about what takes up the budget."""
    dense, fixed, target = budget.dense(space), budget.fixed(space), budget.target(space)
    if budget.of in ("total", "bytes") and (fixed >= target or 2 * fixed > low):
        yield f"{fixed / dense:.1%} of all parameters are out of reach of this space{_largest_beyond(space)}."
    kinds: list[Kind] = [group.kind for group in space.groups]
    for kind in dict.fromkeys(kinds):
        if not _is_single(space, kind):
            continue
        if kind == "block":
            yield "The model has a single layer, which stays."
        else:
            yield f"Each layer has only one of the {UNIT_NAMES[kind]}, which stays, so none of them can be removed."
    if budget.protect:
        whole = len(budget.pinned(space))
        yield f"budget.protect keeps {whole} of {len(space.groups)} groups whole."
    if added and low - added <= target:
        yield f"What the method adds takes {budget.amount(added)} of it."


def _largest_beyond(space: PruningSpace) -> str:
    """The largest tensor that no decision of the space changes."""
    touched = {piece.param for group in space.groups for piece in group.slices}
    sizes = {param: math.prod(shape) for param, shape in space.shapes.items() if param not in touched}
    if not sizes:
        return ""
    largest = max(sizes, key=lambda param: sizes[param])
    return f", {sizes[largest] / space.num_parameters:.1%} in `{largest}` alone"


def _is_single(space: PruningSpace, kind: Kind) -> bool:
    """Whether no unit of a kind can be removed, because there is only one at every place."""
    groups = [group for group in space.groups if group.kind == kind]
    return len(groups) == 1 and groups[0].size == 1 if kind == "block" else all(group.size == 1 for group in groups)


def _cures(space: PruningSpace, budget: Budget, reach: Reach) -> Iterator[str]:
    """Changes of the run file, each of which would be enough by itself."""

    def helps(**changes: object) -> bool:
        other = budget.model_copy(update=changes)
        try:
            return reach(other)[0] <= other.target(space)
        except ConfigError:  # a multiple of more features than a group has
            return False

    low = reach(budget)[0]
    if low < budget.dense(space):
        yield f"raise {budget.key} to {budget.smallest(space, low)} or more"
    if budget.of == "total" and budget.key == "budget.keep" and helps(of="prunable"):
        yield "count only what the space can cut (budget.of: prunable)"
    shares = (percent / 100 for percent in range(math.ceil(100 * budget.min_keep) - 1, -1, -1))
    share = next((share for share in shares if helps(min_keep=share)), None)
    if share is not None:
        yield f"lower budget.min_keep to {share:g}"
    largest = max(alignment(group, budget.multiple_of) for group in space.groups)
    step = next((s for s in range(largest - 1, 0, -1) if largest % s == 0 and helps(multiple_of=s)), None)
    if step is not None:
        yield f"lower budget.multiple_of to {step}"
    if share is None and step is None and budget.min_keep and helps(min_keep=0.0, multiple_of=1):
        yield "lower both budget.min_keep to 0 and budget.multiple_of to 1"
    if budget.protect and helps(protect=[]):
        yield "protect fewer layers (budget.protect)"
