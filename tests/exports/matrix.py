"""One line for each case that an export test decides, for docs/exports/matrix.md."""

import json
import os
from pathlib import Path


def cell(target: str, family: str, space: str, layout: str, outcome: str, why: str = "") -> None:
    """Record a case, where the environment variable TUNEPRUNE_EXPORT_MATRIX names a file for it.

    Args:
        layout: `uniform` or `ragged`.
        outcome: `run`, `structure` or `impossible`.
    """
    path = os.environ.get("TUNEPRUNE_EXPORT_MATRIX")
    if path:
        line = {"target": target, "family": family, "space": space, "layout": layout, "outcome": outcome, "why": why}
        with Path(path).open("a", encoding="utf8") as file:
            file.write(json.dumps(line) + "\n")
