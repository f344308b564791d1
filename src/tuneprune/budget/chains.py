"""The steps in which groups lose units, under a budget's constraints on widths."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tuneprune.errors import ConfigError
from tuneprune.structure.space import Group, PruningSpace

Scores = Mapping[str, Float[Tensor, " units"]]
MultipleOf = int | Literal["auto"]
WIDE, ALIGNED = 2048, 128
"""`auto` makes widths of at least `WIDE` features multiples of `ALIGNED`."""


@dataclass(frozen=True)
class Chain:
    """The units of one group (for uniform widths: of the groups at one place of all layers), best first, in steps.

    A step is the fewest units that respect `multiple_of`; step i keeps `orders[name][i * size : (i + 1) * size]` of
    every group in the chain. Every chain keeps at least its first `floor` steps; only a layer's floor may be 0.
    """

    orders: Mapping[str, Tensor]
    size: int
    scores: Tensor
    floor: int = 1

    def __len__(self) -> int:
        return len(self.scores)


def chains_of(
    scores: Scores,
    space: PruningSpace,
    multiple_of: MultipleOf,
    per_layer: Literal["free", "uniform"],
    min_keep: float = 0.0,
    pinned: Mapping[str, int] | None = None,
) -> list[Chain]:
    """The chains of a space, in its order; of whole layers only the best one has a floor.

    Args:
        min_keep: share of its units that every group keeps at least, in whole steps; ignored for whole layers.
        pinned: units that groups keep whatever their scores; a group that keeps all is a single step.

    Raises:
        ConfigError: `multiple_of` is larger than a width of the model, or the layers differ under `uniform`.
    """
    bundles = [[group] for group in space.groups] if per_layer == "free" else _bundles(space)
    chains: list[Chain] = []
    for bundle in bundles:
        least = _least(bundle, pinned or {})
        is_whole = least == bundle[0].size
        size = bundle[0].size if is_whole else units_per_step(bundle[0], multiple_of)
        num_steps = bundle[0].size // size
        values = {group.name: scores[group.name].detach().cpu().double() for group in bundle}
        orders = {name: torch.argsort(value, descending=True, stable=True) for name, value in values.items()}
        best = [values[name][order][: num_steps * size].view(num_steps, size).mean(1) for name, order in orders.items()]
        floor = 0 if bundle[0].kind == "block" else steps_at_least(bundle[0], min_keep, size)
        floor = max(floor, math.ceil(least / size))
        chains.append(Chain(orders, size, torch.stack(best).mean(0), floor))
    layers = [index for index, chain in enumerate(chains) if not chain.floor]
    if layers and len(layers) == sum(bundle[0].kind == "block" for bundle in bundles):  # no layer is pinned
        best_layer = max(layers, key=lambda index: chains[index].scores[0].item())
        chains[best_layer] = replace(chains[best_layer], floor=1)
    return chains


def _least(bundle: Sequence[Group], pinned: Mapping[str, int]) -> int:
    """The units that every group of a bundle keeps whatever its scores.

    Raises:
        ConfigError: the groups have to become equal, but some are to keep more than others.
    """
    least = {pinned.get(group.name, 0) for group in bundle}
    if len(least) > 1:
        held = next(group.name for group in bundle if pinned.get(group.name))
        raise ConfigError(
            f"budget.protect and budget.widths cannot treat {held} differently from other layers if all get equal"
            " widths. Name its kind, or leave equal widths (budget.per_layer=uniform, or the method's `uniform`) out."
        )
    return least.pop()


def steps_at_least(group: Group, min_keep: float, size: int) -> int:
    """The fewest steps of `size` units that make the share `min_keep` of a group: at least one, at most all."""
    return min(max(1, math.ceil(min_keep * group.size / size - 1e-9)), group.size // size)


def _bundles(space: PruningSpace) -> list[list[Group]]:
    """Groups that must end with equal widths: those at the same place of every block. A whole layer is on its own.

    Raises:
        ConfigError: the layers of the model have different widths.
    """
    per_layer: dict[int, list[Group]] = {}
    for group in space.groups:
        if group.kind != "block":
            per_layer.setdefault(group.layer, []).append(group)
    bundles = [list(bundle) for bundle in zip(*per_layer.values(), strict=True)]
    if any(len({(group.kind, group.size) for group in bundle}) > 1 for bundle in bundles):
        raise ConfigError(
            "budget.per_layer=uniform needs layers of equal width, but those of this model differ."
            " Use budget.per_layer=free."
        )
    return bundles + [[group] for group in space.groups if group.kind == "block"]


def alignment(group: Group, multiple_of: MultipleOf) -> int:
    """The number of features that the kept width of a group must be a multiple of.

    `auto` is 128 for widths of 2048 features or more that 128 divides, because kernels and quantisation formats need
    it; smaller widths occur in toy models only.
    """
    if multiple_of != "auto":
        return multiple_of
    features = group.size * group.features
    return ALIGNED if features >= WIDE and features % ALIGNED == 0 else 1


def units_per_step(group: Group, multiple_of: MultipleOf) -> int:
    """The fewest units whose features are a multiple of `multiple_of`.

    Raises:
        ConfigError: the group has fewer units than that.
    """
    features = alignment(group, multiple_of)
    units = features // math.gcd(features, group.features)
    if units > group.size:
        raise ConfigError(
            f"budget.multiple_of={multiple_of} cannot be met: {group.name} has only {group.size} units of"
            f" {group.features} features. Use at most {group.size * group.features}, or a divisor of it."
        )
    return units
