"""Files and folders that appear whole or not at all, and survive a crash of the machine.

Everything is written to a sibling, flushed to the disk, and renamed; then the folder that holds the new name is flushed
too, because a rename lasts only once its folder is on the disk.
"""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from safetensors import SafetensorError

from tuneprune.errors import ConfigError
from tuneprune.system.locks import is_locked

FULL = (errno.ENOSPC, errno.EDQUOT)
SEALED = (errno.EROFS, errno.EACCES, errno.EPERM)
UMASK = os.umask(0)  # it can only be read by setting it, which other threads would see later
os.umask(UMASK)
PARTIAL = re.compile(r"\..+\.(\d+)\.partial")


def write_text(path: Path, text: str) -> Path:
    """Write `text` to `path` in UTF-8 and return `path`; makes parent folders. A failed write keeps the old file.

    Raises:
        ConfigError: the disk refused the write.
    """
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")
    return path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A sibling of the file `path` to write to, which replaces it when the block ends without an error.

    Raises:
        ConfigError: the disk refused the write; `path` is unchanged.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")  # several processes may write this file at once
    with disk_errors_explained(path):
        make_folder(path.parent)
        try:
            yield partial
            _permit(partial)
            flush(partial)
            partial.replace(path)
            flush(path.parent)
        finally:
            with suppress(OSError):
                partial.unlink(missing_ok=True)


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """An empty sibling of `folder` to write to, which replaces it when the block ends without an error.

    The old folder is moved away only then, so a failing disk, an interrupt or a kill leaves it as it was.

    Raises:
        ConfigError: another process is writing this folder.
        OSError: the disk refused the write.
    """
    partial, old = _siblings(folder)
    make_folder(folder.parent)
    if old.exists() and not folder.exists():
        old.rename(folder)  # a process was killed between the two renames of `_publish`
    descriptor = _locked(partial, folder)
    try:
        for leftover in partial.iterdir():
            shutil.rmtree(leftover) if leftover.is_dir() and not leftover.is_symlink() else leftover.unlink()
        yield partial
        _publish(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        os.close(descriptor)


@contextmanager
def disk_errors_explained(path: Path) -> Iterator[None]:
    """Inside, an error of the disk becomes one sentence about `path`.

    Raises:
        ConfigError: instead of an OSError, or of the SafetensorError for one.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path} cannot be written: {reason(error)}. {advice(error)}") from error


def reason(error: Exception) -> str:
    """The message of the operating system, without numbers and paths."""
    text = getattr(error, "strerror", None) or next(iter(str(error).strip().splitlines()), type(error).__name__)
    return str(text).rstrip(".")


def advice(error: Exception) -> str:
    """What a user can do about an error of the disk."""
    number = getattr(error, "errno", None)
    if number in FULL or "No space left" in str(error):
        return "Free space; a run continues with --resume."
    if number in SEALED or "ermission denied" in str(error) or "ead-only file system" in str(error):
        return "Make it writable, or name another --out."
    if number == errno.ENOTDIR:
        return "A part of its path is a file; name another --out."
    if number == errno.EFBIG or "File too large" in str(error):
        return "Raise the limit on file sizes (ulimit -f), or name an --out on another disk."
    return "Name an --out on a disk that works; a run continues with --resume."


def make_folder(folder: Path) -> None:
    """Make a folder and its missing parents, and flush them to the disk."""
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for made in reversed(missing):
        flush(made.parent)


def _permit(path: Path) -> None:
    """Give a file the permissions that the umask allows; safetensors writes files that only their owner can read."""
    if path.is_file():
        path.chmod(0o666 & ~UMASK)


def flush(path: Path) -> None:
    """Write a file's bytes, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL or not path.is_dir():  # some network file systems cannot flush folders
            raise
    finally:
        os.close(descriptor)


def delete_partial_files(folder: Path) -> None:
    """Delete half-written files below `folder` that killed processes of this machine left."""
    for path in folder.rglob(".*.partial"):
        made_by = PARTIAL.fullmatch(path.name)
        if made_by and not path.is_dir() and not psutil.pid_exists(int(made_by[1])):
            with suppress(OSError):
                path.unlink()


def _locked(partial: Path, folder: Path) -> int:
    """Make or find the folder `partial` and lock it against other processes; returns its open descriptor.

    Raises:
        ConfigError: another process holds it.
    """
    while True:
        partial.mkdir(exist_ok=True)
        try:
            descriptor = os.open(partial, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:  # its owner has just finished
            continue
        try:
            if is_locked(descriptor):
                raise ConfigError(f"{folder} is being written by another process. Wait for it, or name another folder.")
            if partial.is_dir() and os.path.samestat(partial.stat(), os.fstat(descriptor)):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _publish(partial: Path, folder: Path) -> None:
    """Move the finished folder into place. The old one is moved away first: a rename cannot replace a full folder."""
    old = _siblings(folder)[1]
    for path in [*partial.rglob("*"), partial]:
        if not path.is_symlink():
            _permit(path)
            flush(path)
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    try:
        partial.rename(folder)
    except BaseException:  # signals included
        if old.exists() and not folder.exists():
            old.rename(folder)
        raise
    flush(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _siblings(folder: Path) -> tuple[Path, Path]:
    """The folder that is written in place of `folder`, and the name that the old one gets meanwhile."""
    return folder.with_name(f".{folder.name}.partial"), folder.with_name(f".{folder.name}.old")
