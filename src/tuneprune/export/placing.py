"""Folders that appear whole or not at all."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tuneprune.errors import ConfigError


@contextmanager
def placed(folder: Path, marker: str) -> Iterator[Path]:
    """An empty sibling of `folder` to write to, which takes its place when the block ends without an error.

    What was in `folder` steps aside only then, so a failing disk or an interrupt leaves it as it was.

    Args:
        marker: the file by which an earlier export in `folder` is known, which may be replaced.

    Raises:
        ConfigError: `folder` is a file, or holds something else than such an export.
    """
    folder = folder.resolve()
    check_replaceable(folder, marker)
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        _publish(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_replaceable(folder: Path, marker: str) -> None:
    """Refuse a folder that holds something else than an export, known by its file `marker`.

    Raises:
        ConfigError: it does, or is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder}: is a file, but the model needs a folder. Name another one.")
    if folder.exists() and any(folder.iterdir()) and not (folder / marker).is_file():
        raise ConfigError(f"{folder}: holds files that are not a model, which would be lost. Name another folder.")


def _publish(partial: Path, folder: Path) -> None:
    """Move the finished folder into place; the old one steps aside first, because a rename replaces no full folder."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    try:
        partial.rename(folder)
    except BaseException:  # a signal too
        if old.exists() and not folder.exists():
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)
