import errno
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch

from tuneprune.errors import ConfigError, PlanMismatch
from tuneprune.train import checkpoint
from tuneprune.train.checkpoint import CONTENT, MANIFEST, TENSORS


def state(value):
    return {"tensor": torch.tensor(value), "step": value, "rate": 0.1 * value}


def save(folder, *steps, fingerprint="f"):
    for step in steps:
        checkpoint.save(folder, step, state(step), fingerprint)


def loaded(folder, fingerprint="f"):
    found = checkpoint.load_latest(folder, fingerprint)
    assert found.state == state(found.step)
    return found


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_newest_of_two_is_kept(tmp_path):
    save(tmp_path, 2, 4, 10, 1000000)
    assert names(tmp_path) == ["step-000010", "step-1000000"]
    assert names(tmp_path / "step-000010") == [MANIFEST, CONTENT, TENSORS]
    assert loaded(tmp_path).step == 1000000


def test_nothing_to_load(tmp_path):
    assert checkpoint.load_latest(tmp_path / "nowhere", "f") is None


def test_other_fingerprint_is_refused(tmp_path):
    save(tmp_path, 1)
    with pytest.raises(PlanMismatch, match="other settings or data"):
        checkpoint.load_latest(tmp_path, "g")


def test_nothing_is_unpickled():
    """A pickle from an untrusted source can run code: no file of the package calls `torch.load` or pickle."""
    source = "".join(path.read_text() for path in checkpoint.Path(checkpoint.__file__).parents[1].rglob("*.py"))
    assert "torch.load(" not in source
    assert "pickle.load" not in source


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def swap(path):
    shutil.copy(path.parents[1] / "step-000002" / path.name, path)


def link(path):
    path.unlink()
    path.symlink_to(path.parents[1] / "step-000002" / path.name)


def add_file(path):
    (path.parent / "more.bin").write_bytes(b"")


def folder_in_its_place(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("name", [MANIFEST, CONTENT, TENSORS])
@pytest.mark.parametrize(
    "harm", [cut, flip, swap, link, add_file, folder_in_its_place, os.unlink, lambda path: path.write_bytes(b"")]
)
def test_damaged_checkpoint_is_named_and_the_earlier_one_used(tmp_path, name, harm):
    save(tmp_path, 2, 4)
    harm(tmp_path / "step-000004" / name)
    found = loaded(tmp_path)
    assert found.step == 2
    assert names(tmp_path) == ["step-000002", "step-000004"]  # loading changes nothing on the disk
    (message,) = checkpoint.rename_damaged(found)
    assert f"{tmp_path / 'step-000004'} is damaged (" in message
    assert "continues from step-000002" in message
    assert names(tmp_path) == ["damaged-step-000004", "step-000002"]
    assert loaded(tmp_path).damaged == {}
    save(tmp_path, 4)  # the same number again
    assert loaded(tmp_path).step == 4


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda path: cut(path / TENSORS), r"state.safetensors has \d+ bytes instead of \d+"),
        (lambda path: flip(path / CONTENT), "state.json has other content"),
        (lambda path: (path / CONTENT).unlink(), "state.json is missing"),
        (lambda path: flip(path / MANIFEST), "manifest.json is not what was written"),
        (lambda path: add_file(path / MANIFEST), "more.bin is not part of a checkpoint"),
        (lambda path: [file.unlink() for file in path.iterdir()], "manifest.json is missing"),
    ],
)
def test_damage_is_named(tmp_path, harm, message):
    save(tmp_path, 2)
    harm(tmp_path / "step-000002")
    with pytest.raises(ConfigError, match=f"All checkpoints in .*step-000002: {message}.*another --out, or delete"):
        checkpoint.load_latest(tmp_path, "f")
    assert names(tmp_path) == ["step-000002"]  # the next call says the same


def test_every_bit_of_a_manifest_counts(tmp_path):
    save(tmp_path, 1, 2)
    path = tmp_path / "step-000002" / MANIFEST
    before = path.read_bytes()
    for bit in range(8 * len(before)):
        content = bytearray(before)
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        with pytest.raises(checkpoint.Damaged):
            checkpoint.read_manifest(path.parent)


def test_renamed_checkpoint_is_not_another_step(tmp_path):
    save(tmp_path, 1)
    (tmp_path / "step-000001").rename(tmp_path / "step-000009")
    with pytest.raises(ConfigError, match="step-000009: it was written as step 1"):
        checkpoint.load_latest(tmp_path, "f")


def rewrite(path, **changes):
    """Write a manifest that fits itself and its files."""
    content = json.loads(checkpoint.describe(path, 1, "f")) | changes
    content.pop("sha256")
    (path / MANIFEST).write_bytes(checkpoint.encode(content))


@pytest.mark.parametrize(
    "change", [{"files": {}}, {"files": {"../../secret": {"bytes": 1, "sha256": ""}}}, {"step": "x"}, {"more": 1}]
)
def test_forged_manifest_is_damage(tmp_path, change):
    save(tmp_path, 1)
    rewrite(tmp_path / "step-000001", **change)
    with pytest.raises(ConfigError, match=r"manifest\.json is not what was written"):
        checkpoint.load_latest(tmp_path, "f")


@pytest.mark.parametrize("text", ["[]", "null", '{"tensor": "7"}', '{"dict": [[[], 1]]}', "[" * 100000])
def test_forged_state_is_damage(tmp_path, text):
    save(tmp_path, 1)
    (tmp_path / "step-000001" / CONTENT).write_text(text)
    rewrite(tmp_path / "step-000001")
    with pytest.raises(ConfigError, match="its state"):
        checkpoint.load_latest(tmp_path, "f")


def test_another_format_is_not_damage(tmp_path):
    save(tmp_path, 1)
    rewrite(tmp_path / "step-000001", format=3)
    with pytest.raises(PlanMismatch, match=r"another version of tuneprune.*another --out"):
        checkpoint.load_latest(tmp_path, "f")
    (tmp_path / "step-000002").mkdir()
    (tmp_path / "step-000002" / "state.pt").write_bytes(b"torch")
    with pytest.raises(PlanMismatch, match=r"step-000002 was written by another version"):
        checkpoint.load_latest(tmp_path, "f")


def test_last_valid_one_is_never_deleted(tmp_path):
    save(tmp_path, 1, 2)
    flip(tmp_path / "step-000002" / TENSORS)
    save(tmp_path, 3)
    assert names(tmp_path) == ["step-000001", "step-000002", "step-000003"]
    flip(tmp_path / "step-000003" / TENSORS)
    assert loaded(tmp_path).step == 1
    save(tmp_path, 4, 5)
    assert names(tmp_path) == ["step-000004", "step-000005"]


def test_leftovers_of_a_killed_process_are_removed(tmp_path):
    save(tmp_path, 1)
    (tmp_path / ".step-000003.partial").mkdir()
    (tmp_path / ".step-000003.partial" / TENSORS).write_bytes(b"half")
    (tmp_path / ".step-000007.partial").mkdir()
    save(tmp_path, 3)
    assert names(tmp_path) == ["step-000001", "step-000003"]
    assert loaded(tmp_path).step == 3


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["tuneprune.train.checkpoint.save_file", "os.fsync", "pathlib.Path.rename"])
def test_full_disk_leaves_the_previous_checkpoint(tmp_path, monkeypatch, call):
    save(tmp_path, 1)
    with monkeypatch.context() as patched:
        patched.setattr(call, full_disk)
        with pytest.raises(ConfigError, match=r"step-000002.*No space left.*Free space.*Earlier .* intact"):
            save(tmp_path, 2)
    assert names(tmp_path) == ["step-000001"]
    assert loaded(tmp_path).step == 1


def test_disk_that_stores_other_bytes_is_noticed_before_older_ones_are_deleted(tmp_path, monkeypatch):
    save(tmp_path, 1, 2)
    rename = checkpoint.Path.rename

    def corrupt(self, target):
        rename(self, target)
        flip(target / TENSORS)

    with monkeypatch.context() as patched:
        patched.setattr("pathlib.Path.rename", corrupt)
        with pytest.raises(ConfigError, match="other content than was written"):
            save(tmp_path, 3)
    assert loaded(tmp_path).step == 2
    assert names(tmp_path) == ["step-000001", "step-000002", "step-000003"]


def test_limit_on_file_sizes_is_one_sentence(tmp_path):
    """A real error in the middle of a file."""
    code = (
        "import sys, torch, resource; from pathlib import Path; from tuneprune.train import checkpoint;"
        "folder = Path(sys.argv[1]); checkpoint.save(folder, 1, {'a': torch.zeros(10)}, 'f');"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000));"
        "checkpoint.save(folder, 2, {'a': torch.zeros(10000)}, 'f')"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert "Could not write checkpoint" in done.stderr
    assert "File too large" in done.stderr
    assert names(tmp_path) == ["step-000001"]
    assert checkpoint.load_latest(tmp_path, "f").step == 1


def test_interrupted_write_leaves_the_previous_checkpoint(tmp_path, monkeypatch):
    save(tmp_path, 1)

    def killed(_, path):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save_file", killed)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, 2)
    assert names(tmp_path) == ["step-000001"]


def test_fingerprint_follows_content_not_order():
    assert checkpoint.fingerprint("tune", {"a": 1, "b": 2}) == checkpoint.fingerprint("tune", {"b": 2, "a": 1})
    assert checkpoint.fingerprint("tune", {"a": 1}) != checkpoint.fingerprint("tune", {"a": 2})
    assert checkpoint.fingerprint("tune") != checkpoint.fingerprint("reference")
