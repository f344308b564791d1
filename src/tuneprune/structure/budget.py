"""How much to keep: the only place where a budget becomes a hard mask."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import BaseModel, Field
from torch import Tensor

from tuneprune.errors import ConfigError, TunePruneError, UnreachableBudget
from tuneprune.structure.space import Group, Masks, PruningSpace

Scores = Mapping[str, Float[Tensor, " units"]]
Reserved = int | Callable[[Mapping[str, int]], int]
"""Parameters that a plan adds to what it keeps: a number, or one that follows from the units kept in every group."""


class Budget(BaseModel, frozen=True, extra="forbid"):
    """Keep the share `keep` of the parameters counted by `of`."""

    keep: float = Field(default=0.6, gt=0, le=1, description="share of the parameters to keep")
    of: Literal["total", "prunable"] = Field(
        default="total", description="count all parameters, or only those of the tensors the space reaches"
    )
    multiple_of: int = Field(
        default=1,
        ge=1,
        description="every kept width is a multiple of this many features; a dropped layer changes no width",
    )
    per_layer: Literal["free", "uniform"] = Field(
        default="free",
        description="`uniform` gives every layer the same widths, so that a stock class can hold the result",
    )

    def target(self, space: PruningSpace) -> int:
        """The number of parameters to keep in the whole model."""
        if self.of == "total":
            return round(self.keep * space.num_parameters)
        return space.num_parameters - round((1 - self.keep) * space.num_prunable)

    def smallest_keep(self, space: PruningSpace, parameters: int) -> float:
        """The smallest `keep`, to four digits, with room for a model of so many parameters."""
        whole = space.num_parameters if self.of == "total" else space.num_prunable
        return math.ceil((parameters - space.num_parameters + whole) / whole * 1e4) / 1e4


@dataclass(frozen=True)
class Chain:
    """The units of one group (for uniform widths: of all groups of one place), best first, in steps.

    A step is the fewest units that respect `multiple_of`; step i keeps `orders[name][i * size : (i + 1) *
    size]` of every group in the chain. Every chain keeps at least its first `floor` steps.
    """

    orders: Mapping[str, Tensor]
    size: int
    scores: Tensor
    floor: int = 1

    def __len__(self) -> int:
        return len(self.scores)


def reachable(space: PruningSpace, budget: Budget, reserved: Reserved = 0) -> tuple[int, int]:
    """The smallest and largest number of parameters a decision under the budget's constraints can have.

    What is `reserved` counts.

    Raises:
        ConfigError: `multiple_of` is larger than a width of the model.
    """
    # Whichever layer a decision keeps at least, it is not larger than the one that this keeps.
    sizes = {group.name: torch.full((group.size,), float(_block_size(space, group))) for group in space.groups}
    chains = _chains(sizes, space, budget)
    floors, whole = [chain.floor for chain in chains], [len(chain) for chain in chains]
    return _count(space, chains, floors, reserved), _count(space, chains, whole, reserved)


def check(space: PruningSpace, budget: Budget, reserved: Reserved = 0) -> None:
    """Refuse a budget that the space cannot meet when `reserved` parameters of it are spent on other things.

    Raises:
        UnreachableBudget: with the range of `keep` that can be reached.
    """
    low, high = reachable(space, budget, reserved)
    if budget.target(space) < low:
        lowest = budget.smallest_keep(space, low)
        whole = space.num_parameters if budget.of == "total" else space.num_prunable
        highest = math.floor((high - space.num_parameters + whole) / whole * 1e4) / 1e4
        raise UnreachableBudget(
            f"budget.keep={budget.keep} of {budget.of} parameters is below what space `{space.name}` can"
            f" reach on this model: {lowest:.4f} to {highest:.4f}. Raise budget.keep, lower budget.multiple_of, or"
            " choose another space."
        )


def allocate(
    scores: Scores,
    space: PruningSpace,
    budget: Budget,
    scope: Literal["global", "local"] = "global",
    *,
    reserved: Reserved = 0,
) -> dict[str, Tensor]:
    """Hard masks that keep the highest scores within the budget.

    At most the budgeted number of parameters is kept, and no removed step of units would still fit. Every
    group keeps at least one step; of whole layers only the best one has to stay. Ties are broken by position,
    so the decision is deterministic. A larger `keep` never keeps fewer parameters.

    Args:
        scope: `global` ranks all units of the model in one list, so scores must be comparable over groups;
            `local` removes the same share from every group. Layers, groups of one unit, are ranked in one
            list under both.
        reserved: parameters the plan adds elsewhere (biases, routers, skip matrices), which the budget also pays;
            they may not shrink when more is kept.

    Raises:
        ConfigError: `multiple_of` is larger than a width of the model, or the layers differ under `uniform`.
        TunePruneError: a score is NaN.
        UnreachableBudget: the budget is below what the floors of all groups need.
    """
    check(space, budget, reserved)
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
    low, high = 0, len(ranked)  # the longest prefix of the ranking within the target
    while low < high:
        middle = (low + high + 1) // 2
        if _count(space, chains, _steps_kept(ranked[:middle], chains), reserved) <= target:
            low = middle
        else:
            high = middle - 1
    steps = _steps_kept(ranked[:low], chains)
    steps = _fill(chains, steps, _integers(ranked[low:]), lambda now: _count(space, chains, now, reserved) <= target)
    masks = {group.name: torch.zeros(group.size) for group in space.groups}
    for chain, count in zip(chains, steps, strict=True):
        for name, order in chain.orders.items():
            masks[name][order[: count * chain.size]] = 1.0
    return masks


def _refuse_nan(scores: Scores) -> None:
    """Sorting would rank NaN above every number and so keep exactly the units nothing is known about.

    Raises:
        TunePruneError: naming the first group with a NaN.
    """
    for name, score in scores.items():
        if score.isnan().any():
            raise TunePruneError(
                f"The scores of `{name}` contain NaN, so its units cannot be ranked."
                " Check the base model's weights, or lower the learning rate."
            )


def _steps_kept(prefix: Tensor, chains: Sequence[Chain]) -> list[int]:
    floors = torch.tensor([chain.floor for chain in chains])
    return _integers(torch.bincount(prefix, minlength=len(chains)) + floors)


def _integers(tensor: Tensor) -> list[int]:
    return tensor.tolist()  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


def _fill(
    chains: Sequence[Chain], steps: list[int], rest: Sequence[int], fits: Callable[[Sequence[int]], bool]
) -> list[int]:
    """Add the best-scored steps that still fit.

    A chain whose step does not fit once is closed: a later one would cost as much, or more if other widths
    grew.
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


def _count(space: PruningSpace, chains: Sequence[Chain], steps: Sequence[int], reserved: Reserved) -> int:
    kept = {name: count * chain.size for chain, count in zip(chains, steps, strict=True) for name in chain.orders}
    return space.count(kept) + (reserved if isinstance(reserved, int) else reserved(kept))


def _block_size(space: PruningSpace, group: Group) -> int:
    """Parameters of a whole layer; 0 for other groups, of which some always stays."""
    return sum(math.prod(space.shapes[piece.param]) for piece in group.slices) if group.kind == "block" else 0


def _chains(scores: Scores, space: PruningSpace, budget: Budget) -> list[Chain]:
    bundles = [[group] for group in space.groups] if budget.per_layer == "free" else _bundles(space)
    chains: list[Chain] = []
    for bundle in bundles:
        size = units_per_step(bundle[0], budget.multiple_of)
        num_steps = bundle[0].size // size
        values = {group.name: scores[group.name].detach().cpu().double() for group in bundle}
        orders = {name: torch.argsort(value, descending=True, stable=True) for name, value in values.items()}
        best = [values[name][order][: num_steps * size].view(num_steps, size).mean(1) for name, order in orders.items()]
        floor = 0 if bundle[0].kind == "block" else 1
        chains.append(Chain(orders, size, torch.stack(best).mean(0), floor))
    layers = [index for index, chain in enumerate(chains) if not chain.floor]
    if layers:  # a model without any layer is none
        best_layer = max(layers, key=lambda index: chains[index].scores[0].item())
        chains[best_layer] = replace(chains[best_layer], floor=1)
    return chains


def _bundles(space: PruningSpace) -> list[list[Group]]:
    """Groups that must end with equal widths: those at the same place of every block; a whole layer has none.

    Raises:
        ConfigError: the layers of the model differ already.
    """
    per_layer: dict[int, list[Group]] = {}
    for group in space.groups:
        if group.kind != "block":
            per_layer.setdefault(group.layer, []).append(group)
    bundles = [list(bundle) for bundle in zip(*per_layer.values(), strict=True)]
    if any(len({(group.kind, group.size) for group in bundle}) > 1 for bundle in bundles):
        raise ConfigError(
            "budget.per_layer=uniform needs layers of equal width, but this model's differ already."
            " Use budget.per_layer=free."
        )
    return bundles + [[group] for group in space.groups if group.kind == "block"]


def units_per_step(group: Group, multiple_of: int) -> int:
    """The fewest units whose features are a multiple of `multiple_of`.

    Raises:
        ConfigError: the group has fewer units than that.
    """
    units = multiple_of // math.gcd(multiple_of, group.features)
    if units > group.size:
        raise ConfigError(
            f"budget.multiple_of={multiple_of} cannot be met: {group.name} has only {group.size} units of"
            f" {group.features} features. Use at most {group.size * group.features}, or a divisor of it."
        )
    return units


def fractional_ranks(score: Float[Tensor, " units"]) -> Float[Tensor, " units"]:
    """Towards 1 for the best unit of a group, 0 for its worst: one threshold cuts equal shares everywhere."""
    order = torch.argsort(score.detach().cpu().double(), descending=True, stable=True)
    ranks = torch.empty(len(score), dtype=torch.double)
    ranks[order] = 1 - (torch.arange(len(score)).double() + 1) / len(score)
    return ranks


def count_parameters(space: PruningSpace, masks: Masks) -> int:
    """Exact number of parameters of the whole model under hard masks."""
    return space.count({name: int(mask.sum().item()) for name, mask in masks.items()})
