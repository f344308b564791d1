import errno
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from tuneprune.errors import ConfigError
from tuneprune.system import storage


def refuse(number):
    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("call", ["os.fsync", "pathlib.Path.replace", "pathlib.Path.write_text"])
@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "No space left on device. Free space; a run continues with --resume."),
        (errno.EDQUOT, "Disk quota exceeded. Free space"),
        (errno.EROFS, "Read-only file system. Make it writable, or name another --out."),
        (errno.EIO, "Input/output error. Name an --out on a disk that works"),
    ],
)
def test_failed_write_is_one_sentence_and_keeps_the_old_file(tmp_path, monkeypatch, call, number, message):
    path = storage.write_text(tmp_path / "file.json", "old")
    with monkeypatch.context() as patched:
        patched.setattr(call, refuse(number))
        with pytest.raises(ConfigError, match=f"file.json cannot be written: {message}"):
            storage.write_text(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.json"]


def test_files_and_the_folders_of_their_names_are_flushed(tmp_path, monkeypatch):
    flushed = []
    sync = os.fsync
    monkeypatch.setattr("os.fsync", lambda file: (flushed.append(os.readlink(f"/proc/self/fd/{file}")), sync(file)))
    storage.write_text(tmp_path / "new" / "file", "text")
    assert flushed[0] == str(tmp_path)  # the parent of `new`
    assert flushed[-1] == str(tmp_path / "new")
    assert flushed[-2].endswith(".partial")
    flushed.clear()
    with storage.replacing_folder(tmp_path / "folder") as partial:
        (partial / "part").mkdir()
        (partial / "part" / "file").write_text("text")
    names = [path.removeprefix(str(tmp_path)).removeprefix("/.folder.partial") for path in flushed]
    assert set(names[:-1]) == {"/part/file", "/part", ""}
    assert flushed[-1] == str(tmp_path)


def test_file_sizes_are_limited(tmp_path):
    """A real error of the system, as safetensors reports it."""
    code = (
        "import sys, torch, resource; from pathlib import Path;"
        "from safetensors.torch import save_file; from tuneprune.system import storage\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "with storage.replacing(Path(sys.argv[1])) as partial: save_file({'a': torch.zeros(1000)}, partial)"
    )
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.ones(1)}, path)
    before = path.read_bytes()
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert "a.safetensors cannot be written" in done.stderr
    assert "File too large" in done.stderr
    assert "ulimit -f" in done.stderr
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.safetensors"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_sealed_folder(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigError, match=r"Permission denied\. Make it writable"):
        storage.write_text(tmp_path / "file", "text")
    tmp_path.chmod(0o700)


def interrupted_writing(folder):
    with storage.replacing_folder(folder) as partial:
        (partial / "three").write_text("half")
        raise KeyboardInterrupt


def test_folder_appears_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "folder"
    for content in ("one", "two"):
        with storage.replacing_folder(folder) as partial:
            (partial / content).write_text(content)
        assert os.listdir(folder) == [content]
    with pytest.raises(KeyboardInterrupt):
        interrupted_writing(folder)
    assert os.listdir(folder) == ["two"]
    assert os.listdir(tmp_path) == ["folder"]


def test_folder_of_a_killed_process_is_taken_over(tmp_path):
    (tmp_path / ".folder.partial" / "part").mkdir(parents=True)
    (tmp_path / ".folder.partial" / "part" / "half").write_text("half")
    (tmp_path / ".folder.old").mkdir()
    (tmp_path / ".folder.old" / "before").write_text("")  # killed between the two renames
    with storage.replacing_folder(tmp_path / "folder") as partial:
        assert os.listdir(tmp_path / "folder") == ["before"]
        assert os.listdir(partial) == []
        (partial / "new").write_text("")
    assert os.listdir(tmp_path / "folder") == ["new"]
    assert os.listdir(tmp_path) == ["folder"]


def test_two_processes_cannot_write_one_folder(tmp_path):
    with storage.replacing_folder(tmp_path / "folder") as partial:
        (partial / "mine").write_text("")
        with (
            pytest.raises(ConfigError, match="folder is being written by another process"),
            storage.replacing_folder(tmp_path / "folder"),
        ):
            pass
    assert os.listdir(tmp_path / "folder") == ["mine"]


def test_only_partial_files_of_dead_processes_are_deleted(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    (tmp_path / "plan").mkdir()
    dead = tmp_path / "plan" / f".plan.json.{child.pid}.partial"
    living, other = tmp_path / f".a.{os.getpid()}.partial", tmp_path / ".mine.partial"
    for path in (dead, living, other):
        path.write_text("")
    storage.delete_partial_files(tmp_path)
    assert not dead.exists()
    assert living.exists()
    assert other.exists()
