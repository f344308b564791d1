"""How much to keep: what a user asks for, what can be reached, and the only place where it becomes a hard mask."""

from tuneprune.budget.allocation import (
    Reserved,
    allocate,
    check,
    count_parameters,
    fewest_units,
    fractional_ranks,
    reachable,
)
from tuneprune.budget.chains import Scores, units_per_step
from tuneprune.budget.request import Budget

__all__ = [
    "Budget",
    "Reserved",
    "Scores",
    "allocate",
    "check",
    "count_parameters",
    "fewest_units",
    "fractional_ranks",
    "reachable",
    "units_per_step",
]
