"""What a checkpoint's folder must hold, byte for byte: written last, checked before anything is used."""

import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from tuneprune.errors import PlanMismatch
from tuneprune.system.storage import reason

FORMAT = 2
TENSORS, CONTENT, MANIFEST = "state.safetensors", "state.json", "manifest.json"
FILES = (TENSORS, CONTENT)


class Damaged(ValueError):
    """What is wrong with one checkpoint."""


class Facts(BaseModel, frozen=True, extra="forbid"):
    """What a file is known by."""

    bytes: int
    sha256: str


class Manifest(BaseModel, frozen=True, extra="forbid"):
    """What a checkpoint says of itself, beside the hash of just this."""

    format: int
    step: int
    fingerprint: str
    files: dict[str, Facts]


def describe(folder: Path, step: int, fingerprint: str) -> bytes:
    """The manifest of the state that `folder` holds."""
    files = {name: _facts_of(folder / name) for name in FILES}
    return _text(Manifest(format=FORMAT, step=step, fingerprint=fingerprint, files=files).model_dump())


def read(folder: Path) -> Manifest:
    """The manifest, which is as it was written, and fits the folder's name and the names of its files.

    Raises:
        Damaged: says what is wrong.
        PlanMismatch: a checkpoint in another format.
    """
    with _reading(MANIFEST):
        if (folder / "state.pt").exists() and not (folder / MANIFEST).exists():
            raise _other_format(folder)
        text = (folder / MANIFEST).read_bytes()
        is_link = {file.name: file.is_symlink() for file in folder.iterdir()}
    manifest = _parsed(text, folder)
    if f"step-{manifest.step:06d}" != folder.name:
        raise Damaged(f"it was written as step {manifest.step}")
    for name in is_link:
        if is_link[name] or name not in (*FILES, MANIFEST):
            raise Damaged(f"{name} is {'a link' if is_link[name] else 'not its own'}")
    return manifest


def check(folder: Path) -> Manifest:
    """The manifest of a checkpoint whose files are as it says.

    Raises:
        Damaged: says what is wrong.
        PlanMismatch: a checkpoint in another format.
    """
    manifest = read(folder)
    for name in FILES:
        with _reading(name):
            found = _facts_of(folder / name)
        _compare(name, found, manifest)
    return manifest


def contents(folder: Path, manifest: Manifest) -> dict[str, bytes]:
    """The files of a checkpoint: the very bytes that were checked.

    Raises:
        Damaged: says what is wrong.
    """
    found = {}
    for name in FILES:
        with _reading(name):
            found[name] = (folder / name).read_bytes()
        _compare(name, _facts(io.BytesIO(found[name])), manifest)
    return found


def _parsed(text: bytes, folder: Path) -> Manifest:
    """The manifest that a file holds.

    Raises:
        Damaged: not a byte may differ from what was written.
        PlanMismatch: another format.
    """
    try:
        content = json.loads(text)
        del content["sha256"]
        if _text(content) != text:
            raise Damaged(f"{MANIFEST} is not what was written")
        if content["format"] != FORMAT:
            raise _other_format(folder)
        manifest = Manifest.model_validate(content)
    except (Damaged, PlanMismatch):
        raise
    except (ValueError, KeyError, TypeError, RecursionError, ValidationError) as error:
        raise Damaged(f"{MANIFEST} is not what was written") from error
    if manifest.files.keys() != set(FILES):
        raise Damaged(f"{MANIFEST} is not what was written")
    return manifest


def _text(content: Mapping[str, Any]) -> bytes:
    """A manifest as its file holds it, with the hash of all the rest."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return (json.dumps({**content, "sha256": digest}, indent=1) + "\n").encode()


def _other_format(folder: Path) -> PlanMismatch:
    return PlanMismatch(
        f"{folder} was written by another version of tuneprune, in a format that this one does not read. Finish the"
        " run with that version, or begin again with another --out."
    )


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """Inside, a file that cannot be read is damage.

    Raises:
        Damaged: instead of an OSError.
    """
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Damaged(f"{name} is missing") from error
    except OSError as error:
        raise Damaged(f"{name} cannot be read: {reason(error)}") from error


def _compare(name: str, found: Facts, manifest: Manifest) -> None:
    """Refuse a file that is not the one that was written.

    Raises:
        Damaged: says whether it is cut off or changed.
    """
    wanted = manifest.files[name]
    if found.bytes != wanted.bytes:
        raise Damaged(f"{name} has {found.bytes} bytes instead of {wanted.bytes}")
    if found != wanted:
        raise Damaged(f"{name} has other content than was written")


def _facts(stream: Any) -> Facts:  # noqa: ANN401  (an open file or BytesIO)
    digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return Facts(bytes=stream.seek(0, io.SEEK_END), sha256=digest)


def _facts_of(path: Path) -> Facts:
    with path.open("rb") as stream:
        return _facts(stream)
