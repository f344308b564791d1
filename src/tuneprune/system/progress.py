"""What a run says while it works; the command line shows it, a library user may ignore it."""

import logging
from collections.abc import Mapping
from functools import cache
from typing import Any


@cache
def remark(sentence: str) -> None:
    """Say once, as a warning of the logger `tuneprune`, what was found and corrected where no progress is at hand."""
    logging.getLogger("tuneprune").warning(sentence)


class Progress:
    """Receives the run's progress and drops it; subclass to show it."""

    def stage(self, name: str) -> None:
        """A new stage begins, such as `tune`."""

    def detail(self, text: str) -> None:
        """More about the present stage."""

    def step(self, metrics: Mapping[str, Any]) -> None:
        """One tuning step was taken: `step` of `steps`, `loss`, `kept_share`, `tokens_per_s`."""

    def item(self, task: str, done: int, total: int) -> None:
        """So many items of a task are done: of an evaluated one its items, of a weight file its tensors."""

    def note(self, text: str) -> None:
        """Something happened that the user should know of, though the run goes on."""
