"""Random: keep arbitrary units, the same share everywhere. The floor of every comparison.

Paper for the surprising strength of the floor: https://arxiv.org/abs/2202.02643. Nothing is changed.
"""

import torch

from tuneprune.budget import Budget, allocate
from tuneprune.calibration.subject import Subject
from tuneprune.methods.base import Decided, Method, Search, decide, generator_for


class Random(Method):
    """Keep units drawn by the seed, the same share of every group."""

    name = "random"
    paper = "https://arxiv.org/abs/2202.02643"
    spaces = ("width", "head_dim", "disp", "residual", "depth", "experts")
    one_shot = True

    def begin(self, subject: Subject, budget: Budget) -> Search:
        """Decide at once."""
        generator = generator_for(subject.seed, purpose=1)
        scores = {group.name: torch.rand(group.size, generator=generator) for group in subject.space.groups}
        return Decided(decide(allocate(scores, subject.space, budget, "local"), subject, budget, self))
