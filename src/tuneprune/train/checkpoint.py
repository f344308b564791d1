"""Checkpoints that are whole or not there: written aside, flushed, published by rename."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from tuneprune.errors import ConfigError, PlanMismatch

FILE = "state.pt"
KEPT = 2


def fingerprint(*parts: object) -> str:
    """Identifies settings and data: a checkpoint is only resumed under the same ones."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def save(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Publish the state after `step` steps and delete all but the newest two.

    Raises:
        ConfigError: the disk is full or not writable; earlier checkpoints are untouched.
    """
    final = folder / f"step-{step:06d}"
    aside = folder / f".{final.name}.partial"
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        with (aside / FILE).open("wb") as stream:
            torch.save(state, stream)
            stream.flush()
            os.fsync(stream.fileno())
        shutil.rmtree(final, ignore_errors=True)
        aside.rename(final)
    except (OSError, RuntimeError) as error:  # torch wraps a failed write into a RuntimeError
        shutil.rmtree(aside, ignore_errors=True)
        raise ConfigError(
            f"Could not write checkpoint {final}: {error}. Earlier checkpoints are intact; free space and --resume."
        ) from error
    for old in published(folder)[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def published(folder: Path) -> list[Path]:
    """All complete checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step-*") if (path / FILE).is_file())


def load_latest(folder: Path, fingerprint: str) -> dict[str, Any] | None:
    """The newest checkpoint's state, or None where there is none.

    Raises:
        PlanMismatch: the checkpoint was written by another configuration or on other data.
    """
    found = published(folder)
    if not found:
        return None
    state = torch.load(found[-1] / FILE, map_location="cpu", weights_only=True)
    if state["fingerprint"] != fingerprint:
        raise PlanMismatch(
            f"{found[-1]} belongs to a run with other settings or data."
            " Resume with the same run file, or use another --out."
        )
    return state
