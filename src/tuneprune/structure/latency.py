"""What units cost in time."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Latency:
    """The time of one forward pass as a sum: `fixed`, and of every group what its kept units take, in nanoseconds.

    `steps[name][n]` is the time of group `name` with n units, never shorter for more of them. Whole nanoseconds add up
    exactly, so that the sum of what is kept does not depend on the order.
    """

    fixed: int
    steps: Mapping[str, tuple[int, ...]]

    @cached_property
    def dense(self) -> int:
        """The time when nothing is removed."""
        return self.count({})

    def count(self, kept: Mapping[str, int]) -> int:
        """The time when groups keep the given number of units; those that are not named are whole."""
        return self.fixed + sum(steps[kept.get(name, -1)] for name, steps in self.steps.items())

    def left(self, masks: Mapping[str, Float[Tensor, " units"]]) -> Float[Tensor, ""]:
        """The time under `masks`, differentiable in them; between two whole numbers of units it is interpolated."""
        whole = sum(steps[-1] for name, steps in self.steps.items() if name not in masks)
        device = next(iter(masks.values())).device
        total = torch.tensor(float(self.fixed + whole), dtype=torch.double, device=device)
        for name, mask in masks.items():
            steps, units = self.steps[name], mask.double().sum()
            below = min(int(units.item()), len(steps) - 2)
            total = total + steps[below] + (units - below) * (steps[below + 1] - steps[below])
        return total

    def per_unit(self, name: str) -> float:
        """What one unit of a group takes on average, at least a nanosecond."""
        steps = self.steps[name]
        return max(1.0, (steps[-1] - steps[0]) / (len(steps) - 1))
