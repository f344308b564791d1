"""Layers at both ends of a model that a method spares, in addition to those of `budget.protect`."""

from typing import Annotated

from pydantic import AfterValidator, Field

from tuneprune.structure.space import PruningSpace


def _share_or_number(value: float) -> float:
    if value >= 1 and value != int(value):
        raise ValueError(f"write a share of the layers below 1, or a whole number of them, not {value:g}")
    return value


Layers = Annotated[float, AfterValidator(_share_or_number), Field(ge=0, allow_inf_nan=False)]
"""Layers at one end: a share of all below 1, or a number of layers from 1 on."""


def end_layers(space: PruningSpace, first: float, last: float, *, part_counts: bool) -> list[int]:
    """The layers at both ends, in order.

    Args:
        part_counts: whether a share is rounded to the nearest layer, as in LLM-Pruner, and not rounded down.
    """
    num_layers = 1 + max(group.layer for group in space.groups)
    head, tail = (
        int(size * num_layers + (0.5 if part_counts else 0)) if size < 1 else int(size) for size in (first, last)
    )
    return [layer for layer in range(num_layers) if layer < head or layer >= num_layers - tail]
