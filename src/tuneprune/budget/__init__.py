"""How much to keep: the budget a user sets, the range that can be reached, and the hard masks that meet it."""

from tuneprune.budget.allocation import (
    Reserved,
    allocate,
    check_reachable,
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
    "check_reachable",
    "count_parameters",
    "fewest_units",
    "fractional_ranks",
    "reachable",
    "units_per_step",
]
