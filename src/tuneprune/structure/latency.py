"""The time that the units of every group take."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Latency:
    """The time of one forward pass in nanoseconds, as the sum of `fixed` and the time of every group's kept units.

    `steps[name][n]` is the time of group `name` with n units, and never falls with n. Times are whole numbers, so that
    their sum does not depend on the order.
    """

    fixed: int
    steps: Mapping[str, tuple[int, ...]]

    @cached_property
    def dense(self) -> int:
        """The time when nothing is removed."""
        return self.count({})

    def count(self, kept: Mapping[str, int]) -> int:
        """The time if groups keep the given numbers of units; groups that are not named keep all."""
        return self.fixed + sum(steps[kept.get(name, -1)] for name, steps in self.steps.items())

    def left(self, masks: Mapping[str, Float[Tensor, " units"]]) -> Float[Tensor, ""]:
        """The time under `masks`, differentiable in them; interpolated between whole numbers of units."""
        whole = sum(steps[-1] for name, steps in self.steps.items() if name not in masks)
        device = next(iter(masks.values())).device
        total = torch.tensor(float(self.fixed + whole), dtype=torch.double, device=device)
        for name, mask in masks.items():
            steps, units = self.steps[name], mask.double().sum()
            below = min(int(units.item()), len(steps) - 2)
            total = total + steps[below] + (units - below) * (steps[below + 1] - steps[below])
        return total

    def per_unit(self, name: str) -> float:
        """The average time of one unit of a group, at least a nanosecond."""
        steps = self.steps[name]
        return max(1.0, (steps[-1] - steps[0]) / (len(steps) - 1))
