"""Tunings whose disk is full, or whose checkpoints are damaged or missing."""

import errno
import os
import shutil

import pytest
from helpers.tiny_tuning import assert_equal, setting, trainable

from tuneprune.errors import ConfigError
from tuneprune.methods.base import Search
from tuneprune.train import checkpoint


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_run_continues_after_the_disk_was_full(tmp_path, monkeypatch):
    whole = setting(tmp_path / "whole", checkpoint_every=2)
    whole.tuner.run(Search(), fingerprint="f")

    made = setting(tmp_path / "parts", checkpoint_every=2)
    made.tuner.observe = lambda m: monkeypatch.setattr(checkpoint, "save_file", full_disk) if m["step"] == 3 else None
    with pytest.raises(ConfigError, match="No space left on device"):
        made.tuner.run(Search(), fingerprint="f")
    monkeypatch.undo()
    resumed = setting(tmp_path / "parts", checkpoint_every=2)
    resumed.tuner.run(Search(), fingerprint="f", resume=True)
    assert_equal(trainable(whole.model), trainable(resumed.model))


def test_tuning_continues_from_the_checkpoint_before_a_damaged_one_and_says_so(tmp_path):
    made = setting(tmp_path, checkpoint_every=2)
    made.tuner.run(Search(), fingerprint="f")
    damaged = tmp_path / "checkpoints" / "step-000006" / checkpoint.TENSORS
    damaged.write_bytes(damaged.read_bytes()[:-1])
    resumed, messages = setting(tmp_path, checkpoint_every=2), []
    resumed.tuner.note = messages.append
    assert resumed.tuner.run(Search(), fingerprint="f", resume=True).steps == 6
    assert len(messages) == 1
    assert "continues from step-000004" in messages[0]
    assert_equal(trainable(made.model), trainable(resumed.model))
    assert (tmp_path / "checkpoints" / "damaged-step-000006").is_dir()


def test_starting_again_is_said(tmp_path):
    setting(tmp_path, steps=1).tuner.run(Search(), fingerprint="f")
    shutil.rmtree(tmp_path / "checkpoints")
    resumed, messages = setting(tmp_path, steps=1), []
    resumed.tuner.note = messages.append
    resumed.tuner.run(Search(), fingerprint="f", resume=True)
    assert len(messages) == 1
    assert "no checkpoint" in messages[0]
    again = setting(tmp_path / "new", steps=1)
    again.tuner.note = messages.append
    again.tuner.run(Search(), fingerprint="f", resume=True)
    assert len(messages) == 1


def test_disk_too_small_for_checkpoints_is_refused_before_the_first_step(tmp_path, monkeypatch):
    made, seen = setting(tmp_path), []
    made.tuner.observe = seen.append
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(ConfigError, match=r"needs 0\.\d MB for checkpoints, but .* only 0\.0 MB free.*another disk"):
        made.tuner.run(made.begin(), fingerprint="f")
    assert not seen
    assert not (tmp_path / "checkpoints").exists()
