"""`metrics.jsonl`: one object a logged step."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class StepLog:
    """The log of one tuning, appended to; a resumed tuning drops the steps that it will take again."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "metrics.jsonl"

    def rewind(self, step: int) -> None:
        """Drop everything after `step`, and a line that was cut off by a kill."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            lines = self.path.read_text(encoding="utf8").splitlines()
            self.path.write_text("".join(f"{line}\n" for line in lines if _step_of(line) <= step), encoding="utf8")

    def write(self, metrics: Mapping[str, Any]) -> None:
        """Append one step."""
        with self.path.open("a", encoding="utf8") as stream:
            stream.write(json.dumps(metrics) + "\n")


def _step_of(line: str) -> float:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
