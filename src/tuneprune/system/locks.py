"""Locks that end with the process that holds them, however it ends. Why not filelock: docs/adr/0004-own-locks.md."""

import errno
import json
import os
import socket
import sys
import weakref
from contextlib import AbstractContextManager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from tuneprune.errors import ConfigError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK = ".lock"
UNSUPPORTED = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF)
"""Errors of file systems without locks; NFS gives EBADF for a folder."""


def is_locked(descriptor: int) -> bool | None:
    """Whether another process has locked this open file or folder; if not, this process locks it.

    None where the file system has no locks.

    Raises:
        ConfigError: the operating system has no such locks (Windows).
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


class FolderLock(AbstractContextManager["FolderLock"]):
    """Keeps other processes out of an output folder until `release`, the end of a `with` block, or of the process.

    The operating system holds the lock, so a killed process leaves none behind. The text in the file only says who the
    owner is. It decides only on file systems without locks: there an owner counts as gone when its process is dead on
    this machine.

    Raises:
        ConfigError: another process works in this folder; says which.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._close = weakref.finalize(self, os.close, self._descriptor)
        try:
            locked, owner = is_locked(self._descriptor), _owner_in(self.path)
            if locked or (locked is None and owner and not _is_gone(owner)):
                raise ConfigError(_refusal(folder, self.path, owner))
            os.ftruncate(self._descriptor, 0)
            os.write(self._descriptor, (json.dumps(_this_process()) + "\n").encode())
        except BaseException:
            self._close()
            raise

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Unlock the folder. The file stays, as another process may be opening it, and names no owner."""
        if self._close.alive:
            with suppress(OSError):
                os.ftruncate(self._descriptor, 0)
            self._close()


def _this_process() -> dict[str, Any]:
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
    return {"pid": os.getpid(), "host": socket.gethostname(), "started": _started(os.getpid()), "command": command}


def _started(pid: int) -> str:
    return datetime.fromtimestamp(psutil.Process(pid).create_time(), UTC).isoformat(timespec="seconds")


def _owner_in(path: Path) -> dict[str, Any]:
    """The owner that the lock file names; empty where it names none."""
    try:
        owner = json.loads(path.read_text(encoding="utf8"))
    except (OSError, ValueError):
        return {}
    return owner if isinstance(owner, dict) else {}


def _is_gone(owner: dict[str, Any]) -> bool:
    """Whether the owner is known to have ended: a process of this machine that no longer exists."""
    if owner.get("host") != socket.gethostname():
        return False
    try:
        return _started(int(owner["pid"])) != owner.get("started")
    except (psutil.NoSuchProcess, KeyError, TypeError, ValueError):
        return True


def _refusal(folder: Path, path: Path, owner: dict[str, Any]) -> str:
    if not owner:
        return f"{folder} is in use by another process. Wait until it ends, or name another --out."
    who = "process {pid} on {host}, started {started}: {command}".format(
        **{key: str(owner.get(key, "?"))[:200] for key in ("pid", "host", "started", "command")}
    )
    elsewhere = "" if owner.get("host") == socket.gethostname() else f" If that process is gone, delete {path}."
    return f"{folder} is in use by another process ({who}). Wait until it ends, or name another --out.{elsewhere}"
