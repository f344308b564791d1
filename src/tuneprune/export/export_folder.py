"""Folders of exports: written whole or not at all, and replacing nothing but an earlier export."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tuneprune.errors import ConfigError
from tuneprune.system.storage import PARTIAL, replacing_folder, write_text

RECORD = "export.json"
"""The file in each export that lists its files with their sizes, by which a folder is known to be an export."""


@contextmanager
def placed(folder: Path) -> Iterator[Path]:
    """An empty folder next to `folder` to write to, which replaces it when the block ends without an error.

    Raises:
        ConfigError: `folder` is a file, holds something other than an earlier export, or is being written.
        OSError: the files could not be written; what was in `folder` is untouched.
    """
    folder = folder.resolve()
    check_replaceable(folder)
    with replacing_folder(folder) as partial:
        yield partial


def check_replaceable(folder: Path, *sources: str | Path | None) -> None:
    """Refuse a folder that contains a source, or any file that is not an unchanged file of an earlier export.

    Args:
        sources: folders or hub ids of what the export is made from.

    Raises:
        ConfigError: it does, or it is a file.
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
    """The size of every file below a folder, by relative path, without partial files of killed processes."""
    paths = (path for path in folder.rglob("*") if path.is_symlink() or path.is_file())
    files = sorted(path for path in paths if not PARTIAL.fullmatch(path.name))
    return {str(file.relative_to(folder)): file.lstat().st_size for file in files}


def add_to_export(folder: Path, texts: Mapping[str, str]) -> None:
    """Add files to an export; its record lists them first, so that a killed process leaves no unlisted file.

    Raises:
        ConfigError: they could not be written.
    """
    record = _record(folder)
    record["files"] = record.get("files", {}) | {name: len(text.encode()) for name, text in texts.items()}
    write_text(folder / RECORD, _text(record))
    for name, text in texts.items():
        write_text(folder / name, text)


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write the record of an export to `folder`, which is not in its final place yet."""
    (folder / RECORD).write_text(_text(record), encoding="utf8")


def _text(record: Mapping[str, Any]) -> str:
    return json.dumps(record, indent=1) + "\n"


def _record(folder: Path) -> dict[str, Any]:
    """The record of an export, empty where there is none that can be read."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _lies_in(source: Path, folder: Path) -> bool:
    """Whether a folder to read, or a file that it links to, is `folder` or below it."""
    read = [source, *source.iterdir()] if source.is_dir() else []
    return any(path.resolve().is_relative_to(folder.resolve()) for path in read)
