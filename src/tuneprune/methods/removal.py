"""Removal step by step: budgets on the way to the final one, and decisions in which removed units stay removed."""

from collections.abc import Mapping
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from tuneprune.budget import Budget, allocate
from tuneprune.structure.space import Masks, PruningSpace


class Shares(Protocol):
    """Options of a method that removes units between two shares of the steps."""

    start_share: float
    end_share: float


Options = TypeVar("Options", bound=Shares)


def starts_before_it_ends(options: Options) -> Options:
    """A validator: the options, if their removals end after they start.

    Raises:
        ValueError: they do not.
    """
    if options.start_share >= options.end_share:
        raise ValueError(f"start_share={options.start_share} must be below end_share={options.end_share}")
    return options


def cubic(progress: float) -> float:
    """Share of all removals that is due, 1 - (1 - p)^3: fast at first, slow towards the end (Zhu & Gupta 2017)."""
    return 1 - (1 - min(1.0, max(0.0, progress))) ** 3


def scheduled_budget(budget: Budget, done: float) -> Budget:
    """The budget when the share `done` of all removals is due: the whole model at 0, the budget itself at 1."""
    if done >= 1:
        return budget
    return budget.model_copy(update={"keep": budget.keep + (1 - budget.keep) * (1 - done)})


def shrink(
    masks: Masks,
    scores: Mapping[str, Tensor],
    space: PruningSpace,
    budget: Budget,
) -> dict[str, Tensor]:
    """Hard masks that keep the highest scores within the budget, out of what `masks` keep.

    Unlike `allocate` it leaves room unused that only a unit removed earlier would fit into: less than one unit of the
    model's most expensive kind.
    """
    known = {
        name: torch.where(masks[name].to(score.device) > 0, score.double(), -torch.inf)
        for name, score in scores.items()
    }
    fresh = allocate(known, space, budget)
    return {name: fresh[name].to(mask.device) * mask for name, mask in masks.items()}
