"""Exports that appear whole or not at all, and take the place of nothing but an earlier export."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tuneprune.errors import ConfigError
from tuneprune.system.storage import PARTIAL, replacing_folder, write_text

RECORD = "export.json"
"""What was exported: a file beside the others, with the size of each, by which an export is known as one."""


@contextmanager
def placed(folder: Path) -> Iterator[Path]:
    """An empty sibling of `folder` to write to, which takes its place when the block ends without an error.

    Raises:
        ConfigError: `folder` is a file, holds something else than an earlier export, or is being written.
        OSError: the disk refused the files; what was in `folder` is untouched.
    """
    folder = folder.resolve()
    check_replaceable(folder)
    with replacing_folder(folder) as partial:
        yield partial


def check_replaceable(folder: Path, *sources: str | Path | None) -> None:
    """Refuse a folder that holds anything else than the files of an export, as they were written, or what is read.

    Args:
        sources: folders or hub ids of what the export is made from.

    Raises:
        ConfigError: it does, or is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder}: is a file, but the model needs a folder. Name another one.")
    if not folder.exists() or not any(folder.iterdir()):
        return
    lost = next((source for source in sources if source is not None and _lies_in(Path(source), folder)), None)
    if lost is not None:
        raise ConfigError(f"{folder}: writing there would replace {lost}, which is read. Name another folder.")
    known = _record(folder).get("files")
    if not isinstance(known, dict):
        raise ConfigError(
            f"{folder}: holds files and no {RECORD} that lists them as an export of tuneprune; they would be lost. Name"
            " another folder."
        )
    strange = next((name for name, size in sizes(folder).items() if name != RECORD and known.get(name) != size), None)
    if strange is not None:
        raise ConfigError(
            f"{folder}: holds {strange}, which {RECORD} there does not list, or lists with another size; it would be"
            " lost. Name another folder."
        )


def sizes(folder: Path) -> dict[str, int]:
    """The bytes of every file below a folder, by its path from there, without those that killed processes left."""
    paths = (path for path in folder.rglob("*") if path.is_symlink() or path.is_file())
    files = sorted(path for path in paths if not PARTIAL.fullmatch(path.name))
    return {str(file.relative_to(folder)): file.lstat().st_size for file in files}


def add_to_export(folder: Path, texts: Mapping[str, str]) -> None:
    """Write further files to an export: its record lists them before they are there, so a kill leaves none unlisted.

    Raises:
        ConfigError: the disk refused them.
    """
    record = _record(folder)
    record["files"] = record.get("files", {}) | {name: len(text.encode()) for name, text in texts.items()}
    write_text(folder / RECORD, _text(record))
    for name, text in texts.items():
        write_text(folder / name, text)


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write what was exported to `folder`, which nobody else sees yet."""
    (folder / RECORD).write_text(_text(record), encoding="utf8")


def _text(record: Mapping[str, Any]) -> str:
    return json.dumps(record, indent=1) + "\n"


def _record(folder: Path) -> dict[str, Any]:
    """What was exported to `folder`, empty where nothing readable says so."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _lies_in(source: Path, folder: Path) -> bool:
    """Whether a folder that is read, or a file that a link in it leads to, is `folder` or below it."""
    read = [source, *source.iterdir()] if source.is_dir() else []
    return any(path.resolve().is_relative_to(folder.resolve()) for path in read)
