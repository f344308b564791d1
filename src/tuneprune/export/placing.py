"""Exports that appear whole or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tuneprune.errors import ConfigError
from tuneprune.storage import replacing_folder


@contextmanager
def placed(folder: Path, marker: str) -> Iterator[Path]:
    """An empty sibling of `folder` to write to, which takes its place when the block ends without an error.

    Args:
        marker: the file by which an earlier export in `folder` is known, which may be replaced.

    Raises:
        ConfigError: `folder` is a file, holds something else than such an export, or is being written.
        OSError: the disk refused the files; what was in `folder` is untouched.
    """
    folder = folder.resolve()
    check_replaceable(folder, marker)
    with replacing_folder(folder) as partial:
        yield partial


def check_replaceable(folder: Path, marker: str) -> None:
    """Refuse a folder that holds something else than an export, known by its file `marker`.

    Raises:
        ConfigError: it does, or is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder}: is a file, but the model needs a folder. Name another one.")
    if folder.exists() and any(folder.iterdir()) and not (folder / marker).is_file():
        raise ConfigError(f"{folder}: holds files that are not a model, which would be lost. Name another folder.")
