"""Turns scores and a budget into hard masks; nothing else in the project does."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tuneprune.budget.chains import Chain, Scores, chains_of
from tuneprune.budget.request import Budget
from tuneprune.budget.unreachable import explanation
from tuneprune.errors import TunePruneError, UnreachableBudget
from tuneprune.structure.space import Group, Masks, PruningSpace

Reserved = int | Callable[[Mapping[str, int]], int]
"""Parameters that a plan adds: a number, or a function of the numbers of units kept in every group."""


def reachable(space: PruningSpace, budget: Budget, reserved: Reserved = 0) -> tuple[int, int]:
    """The smallest and largest cost of a decision under the budget's constraints, in the budget's unit.

    Includes what is `reserved`.

    Raises:
        ConfigError: `multiple_of` is larger than a width of the model.
    """
    # Scores are sizes, so that the layer that always stays is the largest: whichever one it will be costs no more.
    sizes = {group.name: torch.full((group.size,), float(_block_size(space, group))) for group in space.groups}
    chains = _chains(sizes, space, budget)
    floors, whole = [chain.floor for chain in chains], [len(chain) for chain in chains]
    return _count(space, chains, floors, budget, reserved), _count(space, chains, whole, budget, reserved)


def check_reachable(space: PruningSpace, budget: Budget, reserved: Reserved = 0) -> None:
    """Refuse a budget that the space cannot meet if `reserved` parameters of it are used for other things.

    Raises:
        UnreachableBudget: with the reachable range of `keep`.
    """
    low, _ = reachable(space, budget, reserved)
    if budget.target(space) >= low:
        return
    added = low - reachable(space, budget)[0]
    if budget.is_exact:
        raise UnreachableBudget(
            f"{budget.name} leaves no room for the {added:,} parameters that the method adds. Use budget.keep, or"
            " options with which the method adds none."
        )
    raise UnreachableBudget(explanation(space, budget, lambda other: reachable(space, other, reserved), added))


def allocate(
    scores: Scores,
    space: PruningSpace,
    budget: Budget,
    scope: Literal["global", "local"] = "global",
    *,
    reserved: Reserved = 0,
) -> dict[str, Tensor]:
    """Hard masks that keep the highest scores within the budget.

    The masks keep at most the budgeted number of parameters (or time, if the budget counts that), and no removed step
    of units would still fit. Every group keeps at least the share `budget.min_keep` of its units, and one step; of
    whole layers only the best one has to stay. Ties are broken by position, so the decision is deterministic. A larger
    `keep` never costs less.

    Args:
        scope: `global` ranks all units of the model in one list, so scores must be comparable over groups;
            `local` removes the same share from every group. Layers, groups of one unit, are ranked in one
            list under both.
        reserved: parameters that the plan adds (biases, routers, skip matrices), which count against the budget; they
            must not become fewer if more is kept. A budget of time ignores them.

    Raises:
        ConfigError: `multiple_of` is larger than a width of the model, or the layers differ under `uniform`.
        TunePruneError: a score is NaN.
        UnreachableBudget: the budget is below what the floors of all groups need.
    """
    check_reachable(space, budget, reserved)
    _refuse_nan(scores)
    if scope == "local":
        scores = {
            name: scores[name] if group.kind == "block" else fractional_ranks(scores[name])
            for name, group in space.by_name.items()
        }
    chains = _chains(scores, space, budget)
    target = budget.target(space)
    ids = torch.cat([torch.full((len(chain) - chain.floor,), index) for index, chain in enumerate(chains)])
    values = torch.cat([chain.scores[chain.floor :] for chain in chains])
    ranked = ids[torch.argsort(values, descending=True, stable=True)]

    def fits(steps: Sequence[int]) -> bool:
        return _count(space, chains, steps, budget, reserved) <= target

    low, high = 0, len(ranked)  # the longest prefix of the ranking within the target
    while low < high:
        middle = (low + high + 1) // 2
        if fits(_steps_kept(ranked[:middle], chains)):
            low = middle
        else:
            high = middle - 1
    steps = _steps_kept(ranked[:low], chains)
    steps = _fill(chains, steps, _integers(ranked[low:]), fits)
    masks = {group.name: torch.zeros(group.size) for group in space.groups}
    for chain, count in zip(chains, steps, strict=True):
        for name, order in chain.orders.items():
            masks[name][order[: count * chain.size]] = 1.0
    return masks


def _refuse_nan(scores: Scores) -> None:
    """Refuse NaN, which sorting would rank above every number."""
    for name, score in scores.items():
        if score.isnan().any():
            raise TunePruneError(
                f"The scores of `{name}` contain NaN, so its units cannot be ranked."
                " Check the base model's weights, or lower the learning rate."
            )


def fewest_units(space: PruningSpace, budget: Budget) -> dict[str, int]:
    """The fewest units that every group can keep; of whole layers, the first one stays."""
    chains = _chains(space.ones(), space, budget)
    return {name: chain.floor * chain.size for chain in chains for name in chain.orders}


def _chains(scores: Scores, space: PruningSpace, budget: Budget) -> list[Chain]:
    options = (budget.multiple_of, budget.per_layer, budget.min_keep)
    return chains_of(scores, space, *options, budget.pinned(space))


def _steps_kept(prefix: Tensor, chains: Sequence[Chain]) -> list[int]:
    floors = torch.tensor([chain.floor for chain in chains])
    return _integers(torch.bincount(prefix, minlength=len(chains)) + floors)


def _integers(tensor: Tensor) -> list[int]:
    return tensor.tolist()  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


def _fill(
    chains: Sequence[Chain], steps: list[int], rest: Sequence[int], fits: Callable[[Sequence[int]], bool]
) -> list[int]:
    """Add the steps with the best scores that still fit.

    A chain is closed once a step of it does not fit: a later one would cost as much, or more if other widths grew.
    """
    steps = list(steps)
    closed: set[int] = set()
    for index in rest:
        if index in closed:
            continue
        steps[index] += 1
        if not fits(steps):
            steps[index] -= 1
            closed.add(index)
            if len(closed) == len(chains):
                break
    return steps


def _count(
    space: PruningSpace, chains: Sequence[Chain], steps: Sequence[int], budget: Budget, reserved: Reserved
) -> int:
    kept = {name: count * chain.size for chain, count in zip(chains, steps, strict=True) for name in chain.orders}
    added = reserved if isinstance(reserved, int) else reserved(kept)
    return budget.cost(space, kept) + (0 if budget.of == "latency" else added)


def _block_size(space: PruningSpace, group: Group) -> int:
    """Parameters of a whole layer; 0 for other groups, which always keep some units."""
    return sum(math.prod(space.shapes[piece.param]) for piece in group.slices) if group.kind == "block" else 0


def fractional_ranks(score: Float[Tensor, " units"]) -> Float[Tensor, " units"]:
    """Ranks from nearly 1 (best unit) to 0 (worst): one threshold then removes the same share from every group."""
    order = torch.argsort(score.detach().cpu().double(), descending=True, stable=True)
    ranks = torch.empty(len(score), dtype=torch.double)
    ranks[order] = 1 - (torch.arange(len(score)).double() + 1) / len(score)
    return ranks


def count_parameters(space: PruningSpace, masks: Masks) -> int:
    """Exact number of parameters of the whole model under hard masks."""
    return space.count({name: int(mask.sum().item()) for name, mask in masks.items()})
