"""Watching the numbers of a tuning: what is not finite never reaches a weight."""

import math
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Health:
    """Counts steps whose loss or gradient is not finite, and says when they are too many in a row."""

    limit: int
    skipped: int = 0
    in_a_row: int = 0
    last: dict[str, Any] = field(default_factory=dict)
    """Loss, gradient norm and learning rate of the newest step."""

    def take(self, metrics: dict[str, Any]) -> bool:
        """Whether a step may be taken: its loss and gradient norm are finite."""
        self.last = {name: metrics[name] for name in ("loss", "grad_norm", "learning_rate")}
        if math.isfinite(metrics["loss"]) and math.isfinite(metrics["grad_norm"]):
            self.in_a_row = 0
            return True
        self.skipped += 1
        self.in_a_row += 1
        return False

    @property
    def has_diverged(self) -> bool:
        """Whether too many steps in a row were left out."""
        return self.in_a_row >= self.limit

    def diagnosis(self) -> str:
        """What happened, and what to do."""
        return (
            f"{self.in_a_row} steps in a row had a non-finite loss or gradient (last loss {self.last['loss']}, gradient"
            f" norm {self.last['grad_norm']}, learning rate {self.last['learning_rate']:.2g}). Weights are those of the"
            " last good step. Lower tune.learning_rate, or set tune.precision=fp32."
        )

    def state_dict(self) -> dict[str, Any]:
        """The counts."""
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self.skipped, self.in_a_row = state["skipped"], state["in_a_row"]
