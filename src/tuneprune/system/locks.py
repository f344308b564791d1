"""Locks that end with the process that holds them, however it ends."""

import errno
import json
import os
import socket
import sys
import weakref
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from tuneprune.errors import ConfigError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK = ".lock"
UNSUPPORTED = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF)
"""What file systems say that have no locks; NFS gives EBADF for a folder."""


def taken(descriptor: int) -> bool | None:
    """Whether somebody else has this open file or folder locked; if nobody has, it is locked from now on.

    None where the file system has no locks.

    Raises:
        ConfigError: a system without such locks, which means Windows.
    """
    if fcntl is None:
        raise ConfigError("tuneprune needs file locks, which this system lacks. Use Linux, macOS or WSL.")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        return None
    return False


class FolderLock:
    """An output folder that is this process's own until `release`, the end of a `with` block, or of the process.

    The operating system holds the lock, so a killed process leaves none behind. The file's text only says who the owner
    is; it decides nothing but on file systems without locks, where an owner counts as gone when its process is dead on
    this machine.

    Raises:
        ConfigError: another process works in this folder; says which.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._close = weakref.finalize(self, os.close, descriptor)
        try:
            is_taken, owner = taken(descriptor), _owner_in(self.path)
            if is_taken or (is_taken is None and owner and not _is_gone(owner)):
                raise ConfigError(_refusal(folder, self.path, owner))
            os.ftruncate(descriptor, 0)
            os.write(descriptor, (json.dumps(_this_process()) + "\n").encode())
        except BaseException:
            self._close()
            raise
        self._descriptor = descriptor

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def release(self) -> None:
        """Let others have the folder; the file stays, as another process may be opening it, and names no owner."""
        if self._close.alive:
            with suppress(OSError):
                os.ftruncate(self._descriptor, 0)
            self._close()


def _this_process() -> dict[str, Any]:
    started = datetime.fromtimestamp(psutil.Process().create_time(), UTC).isoformat(timespec="seconds")
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
    return {"pid": os.getpid(), "host": socket.gethostname(), "started": started, "command": command}


def _owner_in(path: Path) -> dict[str, Any]:
    """Who wrote the lock file; empty where it cannot be told."""
    try:
        owner = json.loads(path.read_text(encoding="utf8"))
    except (OSError, ValueError):
        return {}
    return owner if isinstance(owner, dict) else {}


def _is_gone(owner: dict[str, Any]) -> bool:
    """Whether the owner is known to have ended: a process of this machine that is no longer there."""
    if owner.get("host") != socket.gethostname():
        return False
    try:
        created = psutil.Process(int(owner["pid"])).create_time()
    except (psutil.NoSuchProcess, KeyError, TypeError, ValueError):
        return True
    return datetime.fromtimestamp(created, UTC).isoformat(timespec="seconds") != owner.get("started")


def _refusal(folder: Path, path: Path, owner: dict[str, Any]) -> str:
    if not owner:
        return f"{folder} is in use by another process. Wait until it ends, or name another --out."
    who = "process {pid} on {host}, started {started}: {command}".format(
        **{key: str(owner.get(key, "?"))[:200] for key in ("pid", "host", "started", "command")}
    )
    away = "" if owner.get("host") == socket.gethostname() else f" If that process is gone, delete {path}."
    return f"{folder} is in use by another process ({who}). Wait until it ends, or name another --out.{away}"
