"""Progress messages of a run. The command line shows them; library users may ignore them."""

import logging
from collections.abc import Mapping
from functools import cache
from typing import Any


@cache
def remark(sentence: str) -> None:
    """Log once, as a warning of the logger `tuneprune`, what was corrected where there is no `Progress` to note it."""
    logging.getLogger("tuneprune").warning(sentence)


class Progress:
    """Receives the progress of a run and ignores it; subclass to show it."""

    def stage(self, name: str) -> None:
        """A new stage starts, such as `tune`."""

    def detail(self, text: str) -> None:
        """Details of the current stage."""

    def step(self, metrics: Mapping[str, Any]) -> None:
        """One tuning step was taken: `step` of `steps`, `loss`, `kept_share`, `tokens_per_s`."""

    def item(self, task: str, done: int, total: int) -> None:
        """`done` of `total` items are finished: items of an evaluation task, or tensors of a weight file."""

    def note(self, text: str) -> None:
        """Something happened that the user should know; the run continues."""
