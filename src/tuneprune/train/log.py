"""`metrics.jsonl`: one JSON object per logged step."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tuneprune.system.storage import disk_errors_explained, flush, make_folder, write_text


class StepLog:
    """The log of one tuning. A resumed tuning drops the steps that it will repeat."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "metrics.jsonl"

    @property
    def has_steps(self) -> bool:
        """Whether anything was logged earlier."""
        return self.path.exists() and self.path.stat().st_size > 0

    def rewind(self, step: int) -> None:
        """Drop everything after `step`, and a line cut off by a kill.

        Raises:
            ConfigError: the disk refused the write.
        """
        with disk_errors_explained(self.path):
            make_folder(self.path.parent)
        if self.path.exists():
            lines = self.path.read_text(encoding="utf8", errors="replace").splitlines()
            write_text(self.path, "".join(f"{line}\n" for line in lines if _step_of(line) <= step))

    def write(self, metrics: Mapping[str, Any]) -> None:
        """Append one step.

        Raises:
            ConfigError: the disk refused the write.
        """
        with disk_errors_explained(self.path), self.path.open("a", encoding="utf8") as stream:
            stream.write(json.dumps({name: _strict(value) for name, value in metrics.items()}) + "\n")

    def flush(self) -> None:
        """Write all steps so far to the disk: a checkpoint must not survive a crash that its log does not.

        Raises:
            ConfigError: the disk refused the write.
        """
        with disk_errors_explained(self.path):
            if self.path.exists():
                flush(self.path)


def _strict(value: Any) -> Any:  # noqa: ANN401  (what JSON can hold)
    """The value in strict JSON, with NaN and infinities as names, like in the record."""
    if not isinstance(value, float) or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _step_of(line: str) -> float:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
