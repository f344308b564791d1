"""Checkpoints that are whole or absent: written aside, flushed, published by rename, and checked before use.

`step-000123/` holds `state.safetensors`, `state.json`, and `manifest.json`, which is written last and has the size and
sha256 of the other two and the sha256 of itself.
"""

import hashlib
import io
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save_file

from tuneprune.errors import ConfigError, PlanMismatch
from tuneprune.system.storage import advice, disk_errors_explained, reason, replacing_folder
from tuneprune.train.state import flatten, unflatten

FORMAT = 2
TENSORS, CONTENT, MANIFEST = "state.safetensors", "state.json", "manifest.json"
FILES = (TENSORS, CONTENT)
KEPT = 2
"""Valid checkpoints that are kept."""
NAME = re.compile(r"step-\d{6,}")


class Damaged(ValueError):
    """Names the damage of a checkpoint."""


class FileFacts(BaseModel, frozen=True, extra="forbid"):
    """Size and hash of a file."""

    bytes: int
    sha256: str


class Manifest(BaseModel, frozen=True, extra="forbid"):
    """The content of `manifest.json`, apart from the hash of itself."""

    format: int
    step: int
    fingerprint: str
    files: dict[str, FileFacts]


@dataclass(frozen=True)
class Loaded:
    """The state of the newest valid checkpoint, and the damage of newer ones."""

    path: Path
    step: int
    state: dict[str, Any]
    damaged: dict[Path, str] = field(default_factory=dict)


def fingerprint(*parts: object) -> str:
    """A hash of everything that a state depends on: a checkpoint is only resumed under the same fingerprint."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def save(folder: Path, step: int, state: Mapping[str, Any], fingerprint: str) -> Path:
    """Publish the state after `step` steps, then delete checkpoints older than the newest two valid ones.

    Raises:
        ConfigError: the disk refused it, or returned other bytes; earlier checkpoints are unchanged.
        TypeError: the state holds a value that cannot be saved.
    """
    final = folder / f"step-{step:06d}"
    content, tensors = flatten(dict(state))
    try:
        with replacing_folder(final) as aside:
            save_file(tensors, aside / TENSORS)
            (aside / CONTENT).write_text(json.dumps(content, allow_nan=False), encoding="utf8")
            (aside / MANIFEST).write_bytes(describe(aside, step, fingerprint))
        check(final)
    except (OSError, SafetensorError, Damaged) as error:
        raise ConfigError(
            f"Could not write checkpoint {final}: {reason(error)}. {advice(error)} Earlier checkpoints are intact."
        ) from error
    _delete_older(folder, final)
    return final


def published(folder: Path) -> list[Path]:
    """All folders named like a checkpoint, oldest first."""
    found = [path for path in folder.glob("step-*") if NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def load_latest(folder: Path, fingerprint: str) -> Loaded | None:
    """The newest valid checkpoint, or None where there is no checkpoint. Changes nothing on the disk.

    Raises:
        PlanMismatch: the checkpoint was written with another configuration, on other data, or in another format.
        ConfigError: there are checkpoints, and all are damaged.
    """
    damaged: dict[Path, str] = {}
    for path in reversed(published(folder)):
        try:
            manifest = read_manifest(path)
            state = _load_state(path, manifest)
        except Damaged as error:
            damaged[path] = str(error)
            continue
        if manifest.fingerprint != fingerprint:
            raise PlanMismatch(
                f"{path} belongs to a run with other settings or data."
                " Resume with the same run file, or use another --out."
            )
        return Loaded(path, manifest.step, state, damaged)
    if damaged:
        listed = "; ".join(f"{path.name}: {problem}" for path, problem in damaged.items())
        raise ConfigError(
            f"All checkpoints in {folder} are damaged ({listed}), so there is nothing to resume from. Start again with"
            " another --out, or delete that folder to repeat this tuning from the start."
        )
    return None


def rename_damaged(loaded: Loaded) -> list[str]:
    """Rename damaged checkpoints so that they are not tried again; one message for each.

    Raises:
        ConfigError: the disk refused it.
    """
    messages = []
    for path, problem in loaded.damaged.items():
        renamed = path.with_name(f"damaged-{path.name}")
        with disk_errors_explained(renamed):
            shutil.rmtree(renamed, ignore_errors=True)
            path.rename(renamed)
        messages.append(
            f"Checkpoint {path} is damaged ({problem}), so the run continues from {loaded.path.name}; the damaged one"
            f" is now {renamed.name}."
        )
    return messages


def check_disk_space(folder: Path, num_bytes: int) -> None:
    """Refuse a disk that cannot hold the checkpoints of a tuning in addition to those already there.

    Args:
        num_bytes: the least that the state of this tuning takes.

    Raises:
        ConfigError: names what is needed and what is free.
    """
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free, needed = shutil.disk_usage(existing).free, max(0, KEPT - len(published(folder))) * num_bytes
    if free < needed:
        raise ConfigError(
            f"{folder} needs {needed / 1e6:,.1f} MB for checkpoints, but its disk has only {free / 1e6:,.1f} MB free."
            " Free space, or name an --out on another disk."
        )


def describe(folder: Path, step: int, fingerprint: str) -> bytes:
    """The manifest of the state in `folder`, as its file holds it."""
    files = {name: _facts_of(folder / name) for name in FILES}
    return encode(Manifest(format=FORMAT, step=step, fingerprint=fingerprint, files=files).model_dump())


def encode(manifest: Mapping[str, Any]) -> bytes:
    """A manifest as its file holds it, with the hash of itself."""
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    return (json.dumps({**manifest, "sha256": digest}, indent=1) + "\n").encode()


def read_manifest(folder: Path) -> Manifest:
    """The manifest, unchanged since it was written; checks that it fits the names of the folder and its files.

    Raises:
        Damaged: names the damage.
        PlanMismatch: a checkpoint in another format.
    """
    other_format = PlanMismatch(
        f"{folder} was written by another version of tuneprune, in a format that this one does not read. Finish the"
        " run with that version, or start again with another --out."
    )
    with _reading(MANIFEST):
        if (folder / "state.pt").exists() and not (folder / MANIFEST).exists():
            raise other_format
        text = (folder / MANIFEST).read_bytes()
        is_link = {file.name: file.is_symlink() for file in folder.iterdir()}
    try:
        content = json.loads(text)
        del content["sha256"]
        is_intact, format_read = encode(content) == text, content["format"]
        manifest = Manifest.model_validate(content) if format_read == FORMAT else None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Damaged(f"{MANIFEST} is not what was written") from error
    if is_intact and manifest is None:
        raise other_format
    if not is_intact or manifest is None or manifest.files.keys() != set(FILES):
        raise Damaged(f"{MANIFEST} is not what was written")
    if f"step-{manifest.step:06d}" != folder.name:
        raise Damaged(f"it was written as step {manifest.step}")
    for name in is_link:
        if is_link[name] or name not in (*FILES, MANIFEST):
            raise Damaged(f"{name} is {'a link' if is_link[name] else 'not part of a checkpoint'}")
    return manifest


def check(folder: Path) -> None:
    """Check that the files of a checkpoint are what its manifest says.

    Raises:
        Damaged: names the damage.
        PlanMismatch: a checkpoint in another format.
    """
    manifest = read_manifest(folder)
    for name in FILES:
        with _reading(name):
            found = _facts_of(folder / name)
        _compare(name, found, manifest)


def _load_state(folder: Path, manifest: Manifest) -> dict[str, Any]:
    """The state of a checkpoint, decoded from the very bytes that were checked.

    Raises:
        Damaged: a file was changed, or holds no state although it fits the manifest: it is forged.
    """
    content = {}
    for name in FILES:
        with _reading(name):
            content[name] = (folder / name).read_bytes()
        _compare(name, _facts(io.BytesIO(content[name])), manifest)
    try:
        state = unflatten(json.loads(content[CONTENT]), load_tensors(content[TENSORS]))
    except (ValueError, TypeError, KeyError, RecursionError, SafetensorError) as error:
        raise Damaged(f"its state cannot be read: {reason(error)}") from error
    if not isinstance(state, dict):
        raise Damaged("its state is not that of a tuning")
    return state


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """Inside, a file that cannot be read counts as damage.

    Raises:
        Damaged: instead of an OSError.
    """
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Damaged(f"{name} is missing") from error
    except OSError as error:
        raise Damaged(f"{name} cannot be read: {reason(error)}") from error


def _compare(name: str, found: FileFacts, manifest: Manifest) -> None:
    wanted = manifest.files[name]
    if found.bytes != wanted.bytes:
        raise Damaged(f"{name} has {found.bytes} bytes instead of {wanted.bytes}")
    if found != wanted:
        raise Damaged(f"{name} has other content than was written")


def _facts(stream: Any) -> FileFacts:  # noqa: ANN401  (an open file or BytesIO)
    digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return FileFacts(bytes=stream.seek(0, io.SEEK_END), sha256=digest)


def _facts_of(path: Path) -> FileFacts:
    with path.open("rb") as stream:
        return _facts(stream)


def _delete_older(folder: Path, checked: Path) -> None:
    """Delete checkpoints older than the newest `KEPT` valid ones, and leftovers of killed processes.

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
                check(path)
            valid += 1
    for leftover in [*folder.glob(".step-*.partial"), *folder.glob(".step-*.old")]:
        shutil.rmtree(leftover, ignore_errors=True)
