import errno
import os

import pytest
import torch
from tiny_tuning import assert_equal, setting, trainable

from tuneprune.errors import ConfigError, PlanMismatch
from tuneprune.methods.base import Search
from tuneprune.train import checkpoint


def state(value, fingerprint="f"):
    return {"fingerprint": fingerprint, "value": torch.tensor(value)}


def test_newest_of_two_is_kept(tmp_path):
    for step in (2, 4, 10, 100):
        checkpoint.save(tmp_path, step, state(step))
    assert [path.name for path in checkpoint.published(tmp_path)] == ["step-000010", "step-000100"]
    assert checkpoint.load_latest(tmp_path, "f")["value"] == 100


def test_nothing_to_load(tmp_path):
    assert checkpoint.load_latest(tmp_path / "nowhere", "f") is None


def test_other_fingerprint_is_refused(tmp_path):
    checkpoint.save(tmp_path, 1, state(1))
    with pytest.raises(PlanMismatch, match="other settings or data"):
        checkpoint.load_latest(tmp_path, "g")


def test_half_written_folders_are_ignored_and_replaced(tmp_path):
    checkpoint.save(tmp_path, 1, state(1))
    (tmp_path / "step-000002").mkdir()
    (tmp_path / ".step-000003.partial").mkdir()
    (tmp_path / ".step-000003.partial" / "state.pt").write_bytes(b"half")
    assert checkpoint.load_latest(tmp_path, "f")["value"] == 1
    checkpoint.save(tmp_path, 2, state(2))
    checkpoint.save(tmp_path, 3, state(3))
    assert checkpoint.load_latest(tmp_path, "f")["value"] == 3
    assert not (tmp_path / ".step-000003.partial").exists()


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_disk_as_torch_says_it(_, stream):
    stream.write(b"half")
    raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")


@pytest.mark.parametrize("failure", [full_disk, full_disk_as_torch_says_it])
def test_full_disk_leaves_the_previous_checkpoint(tmp_path, monkeypatch, failure):
    checkpoint.save(tmp_path, 1, state(1))
    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", failure)
        with pytest.raises(ConfigError, match=r"step-000002.*Earlier checkpoints are intact"):
            checkpoint.save(tmp_path, 2, state(2))
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]
    assert checkpoint.load_latest(tmp_path, "f")["value"] == 1


def test_interrupted_write_leaves_the_previous_checkpoint(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, 1, state(1))

    def killed(_, stream):
        stream.write(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save(tmp_path, 2, state(2))
    assert checkpoint.load_latest(tmp_path, "f")["value"] == 1


def test_run_continues_after_the_disk_was_full(tmp_path, monkeypatch):
    whole = setting(tmp_path / "whole", checkpoint_every=2)
    whole.tuner.run(Search(), fingerprint="f")

    made = setting(tmp_path / "parts", checkpoint_every=2)
    made.tuner.observe = lambda m: monkeypatch.setattr(torch, "save", full_disk) if m["step"] == 3 else None
    with pytest.raises(ConfigError, match="No space left on device"):
        made.tuner.run(Search(), fingerprint="f")
    monkeypatch.undo()
    resumed = setting(tmp_path / "parts", checkpoint_every=2)
    resumed.tuner.run(Search(), fingerprint="f", resume=True)
    assert_equal(trainable(whole.model), trainable(resumed.model))


def test_fingerprint_follows_content_not_order():
    assert checkpoint.fingerprint("tune", {"a": 1, "b": 2}) == checkpoint.fingerprint("tune", {"b": 2, "a": 1})
    assert checkpoint.fingerprint("tune", {"a": 1}) != checkpoint.fingerprint("tune", {"a": 2})
    assert checkpoint.fingerprint("tune") != checkpoint.fingerprint("reference")
