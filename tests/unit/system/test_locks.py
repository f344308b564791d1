import errno
import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from tuneprune.errors import ConfigError
from tuneprune.system import locks
from tuneprune.system.locks import LOCK, FolderLock

HOLD = "import sys, time; from pathlib import Path; from tuneprune.system.locks import FolderLock;"
HOLD += "lock = FolderLock(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"


@pytest.fixture
def holder(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_folder_in_use_names_its_owner_and_is_free_when_that_is_killed(tmp_path, holder):
    with pytest.raises(ConfigError, match=f"process {holder.pid} on {socket.gethostname()}.*name another --out"):
        FolderLock(tmp_path)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with FolderLock(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert (tmp_path / LOCK).read_text() == ""


def test_one_process_cannot_take_a_folder_twice(tmp_path):
    with FolderLock(tmp_path), pytest.raises(ConfigError, match=f"process {os.getpid()}"):
        FolderLock(tmp_path)
    FolderLock(tmp_path).release()


def test_owner_on_another_host(tmp_path):
    with FolderLock(tmp_path):
        (tmp_path / LOCK).write_text(json.dumps({"pid": 7, "host": "far-away", "started": "s", "command": "c"}))
        with pytest.raises(ConfigError, match=r"process 7 on far-away.*If that process is gone, delete .*\.lock"):
            FolderLock(tmp_path)


@pytest.fixture
def without_locks(monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(locks.fcntl, "flock", unsupported)


def test_file_systems_without_locks_use_the_text(tmp_path, without_locks, holder):
    with pytest.raises(ConfigError, match=f"process {holder.pid}"):
        FolderLock(tmp_path)
    holder.kill()
    holder.wait()
    FolderLock(tmp_path).release()
    (tmp_path / LOCK).write_text(json.dumps({"pid": os.getpid(), "host": "far-away"}))
    with pytest.raises(ConfigError, match="far-away"):
        FolderLock(tmp_path)
    (tmp_path / LOCK).write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "started": "before"}))
    FolderLock(tmp_path).release()  # the number now belongs to another process


@pytest.mark.parametrize("text", ["", "no json", "[]", '{"pid": "x"}'])
def test_damaged_text_blocks_nobody(tmp_path, text):
    (tmp_path / LOCK).write_text(text)
    FolderLock(tmp_path).release()


def test_system_without_locks(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "fcntl", None)
    with pytest.raises(ConfigError, match="Use Linux, macOS or WSL"):
        FolderLock(tmp_path)
