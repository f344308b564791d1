"""Checkpoints that are whole or not there: written aside, flushed, published by rename, checked before they are used.

`step-000123/` holds `state.safetensors`, `state.json`, and `manifest.json` with the size and sha256 of the other two.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save_file

from tuneprune.errors import ConfigError, PlanMismatch
from tuneprune.system.storage import advice, disk_errors_explained, reason, replacing_folder
from tuneprune.train import manifest
from tuneprune.train.manifest import CONTENT, MANIFEST, TENSORS, Damaged
from tuneprune.train.nested import flatten, unflatten

KEPT = 2
NAME = re.compile(r"step-\d{6,}")


@dataclass(frozen=True)
class Loaded:
    """The state of the newest valid checkpoint, and what is wrong with newer ones."""

    path: Path
    step: int
    state: dict[str, Any]
    damaged: dict[Path, str] = field(default_factory=dict)


def fingerprint(*parts: object) -> str:
    """Identifies what a state belongs to: a checkpoint is only resumed under the same parts."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def save(folder: Path, step: int, state: Mapping[str, Any], fingerprint: str) -> Path:
    """Publish the state after `step` steps; then delete what is older than the newest two valid checkpoints.

    Args:
        fingerprint: identifies what the state belongs to.

    Raises:
        ConfigError: the disk refused it, or gives back other bytes; earlier checkpoints are untouched.
        TypeError: the state holds what a checkpoint does not.
    """
    final = folder / f"step-{step:06d}"
    content, tensors = flatten(dict(state))
    try:
        with replacing_folder(final) as aside:
            save_file(tensors, aside / TENSORS)
            (aside / CONTENT).write_text(json.dumps(content, allow_nan=False), encoding="utf8")
            (aside / MANIFEST).write_bytes(manifest.describe(aside, step, fingerprint))
        manifest.check(final)
    except (OSError, SafetensorError, Damaged) as error:
        raise ConfigError(
            f"Could not write checkpoint {final}: {reason(error)}. {advice(error)} Earlier checkpoints are intact."
        ) from error
    _delete_older(folder, final)
    return final


def published(folder: Path) -> list[Path]:
    """Everything that claims to be a checkpoint, oldest first."""
    found = [path for path in folder.glob("step-*") if NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def load_latest(folder: Path, fingerprint: str) -> Loaded | None:
    """The newest valid checkpoint, or None where there is none at all. Changes nothing on the disk.

    Raises:
        PlanMismatch: the checkpoint was written by another configuration, on other data, or in another format.
        ConfigError: there are checkpoints, and all are damaged.
    """
    damaged: dict[Path, str] = {}
    for path in reversed(published(folder)):
        try:
            known = manifest.read(path)
            state = _decoded(manifest.contents(path, known))
        except Damaged as error:
            damaged[path] = str(error)
            continue
        if known.fingerprint != fingerprint:
            raise PlanMismatch(
                f"{path} belongs to a run with other settings or data."
                " Resume with the same run file, or use another --out."
            )
        return Loaded(path, known.step, state, damaged)
    if damaged:
        listed = "; ".join(f"{path.name}: {problem}" for path, problem in damaged.items())
        raise ConfigError(
            f"All checkpoints in {folder} are damaged ({listed}), so there is nothing to resume from. Begin again with"
            " another --out, or delete that folder to repeat this tuning from its beginning."
        )
    return None


def set_aside(loaded: Loaded) -> list[str]:
    """Rename damaged checkpoints, so that they are not met again; one sentence for each.

    Raises:
        ConfigError: the disk refused it.
    """
    said = []
    for path, problem in loaded.damaged.items():
        aside = path.with_name(f"damaged-{path.name}")
        with disk_errors_explained(aside):
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
        said.append(
            f"Checkpoint {path} is damaged ({problem}), so it goes on from {loaded.path.name}; the damaged one is now"
            f" {aside.name}."
        )
    return said


def check_room(folder: Path, num_bytes: int) -> None:
    """Refuse a disk that cannot hold the checkpoints of a tuning, beside those that are there.

    Args:
        num_bytes: the least that the state of this tuning takes.

    Raises:
        ConfigError: says what it takes and what is free.
    """
    around = next(path for path in (folder, *folder.parents) if path.exists())
    free, needed = shutil.disk_usage(around).free, max(0, KEPT - len(published(folder))) * num_bytes
    if free < needed:
        raise ConfigError(
            f"{folder} needs {needed / 1e6:,.1f} MB for checkpoints, but its disk has only {free / 1e6:,.1f} MB free."
            " Free space, or name an --out on another disk."
        )


def _decoded(content: Mapping[str, bytes]) -> dict[str, Any]:
    """The state that a checkpoint's files hold.

    Raises:
        Damaged: they hold none, though they are what the manifest says: it is made up.
    """
    try:
        state = unflatten(json.loads(content[CONTENT]), load_tensors(content[TENSORS]))
    except (ValueError, TypeError, KeyError, RecursionError, SafetensorError) as error:
        raise Damaged(f"its state cannot be read: {reason(error)}") from error
    if not isinstance(state, dict):
        raise Damaged("its state is none of a tuning")
    return state


def _delete_older(folder: Path, checked: Path) -> None:
    """Delete what is older than the newest `KEPT` valid checkpoints, and what killed processes left.

    Args:
        checked: one that is known to be valid, as reading and hashing it again would cost as much as writing it.
    """
    valid = 0
    for path in reversed(published(folder)):
        if valid == KEPT:
            shutil.rmtree(path, ignore_errors=True)
            continue
        with suppress(Damaged, PlanMismatch):
            if path != checked:
                manifest.check(path)
            valid += 1
    for left in [*folder.glob(".step-*.partial"), *folder.glob(".step-*.old")]:
        shutil.rmtree(left, ignore_errors=True)
