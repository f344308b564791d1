"""Random: keep arbitrary units, the same share everywhere. The floor of every comparison.

Paper for the surprising strength of the floor: https://arxiv.org/abs/2202.02643. Nothing is changed.
"""

import torch

from tuneprune.budget import Scores
from tuneprune.calibration.subject import Subject
from tuneprune.methods.base import Method, generator_for


class Random(Method):
    """Keep units drawn by the seed, the same share of every group."""

    name = "random"
    paper = "https://arxiv.org/abs/2202.02643"
    spaces = ("width", "head_dim", "disp", "residual", "depth", "experts")
    one_shot = True
    ranking = "local"

    def scores(self, subject: Subject, /) -> Scores:
        """Uniform random numbers."""
        generator = generator_for(subject.seed, purpose=1)
        return {group.name: torch.rand(group.size, generator=generator) for group in subject.space.groups}
