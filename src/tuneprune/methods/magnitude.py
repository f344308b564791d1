"""Magnitude: keep the units with the largest weights. The baseline that every learned method must beat.

Paper: https://arxiv.org/abs/1608.08710 (filters by norm). Changed: a unit's norm covers all coupled weights, and every
group loses the same share, because norms of groups with different shapes cannot be compared.
"""

from tuneprune.budget import Scores
from tuneprune.calibration.scores import magnitude
from tuneprune.calibration.subject import Subject
from tuneprune.methods.base import Method


class Magnitude(Method):
    """Keep the units of largest L2 norm, the same share of every group."""

    name = "magnitude"
    paper = "https://arxiv.org/abs/1608.08710"
    spaces = ("width", "head_dim", "disp", "residual", "depth", "experts")
    one_shot = True
    ranking = "local"

    def scores(self, subject: Subject, /) -> Scores:
        """L2 norms."""
        return subject.scores("magnitude", lambda: magnitude(subject))
