"""Scores are computed once, and reusing them changes nothing: neither the numbers nor what is drawn afterwards."""

import dataclasses

import pytest
import torch
from helpers import tiny_tuning

from tuneprune import methods
from tuneprune.budget import Budget
from tuneprune.calibration.score_store import ScoreStore
from tuneprune.calibration.scores import taylor


def subject_with(folder, identity, tmp_path):
    subject = tiny_tuning.setting(tmp_path, lora=False).subject
    store = ScoreStore(folder, identity)
    return dataclasses.replace(subject, store=store, calibration=store.counted(subject.calibration))


@pytest.fixture
def identity():
    return {"model": "tiny", "seed": 0}


def test_second_subject_reads_what_the_first_computed(tmp_path, identity):
    first, second = (subject_with(tmp_path / "scores", identity, tmp_path) for _ in range(2))
    found = first.scores("taylor", lambda: taylor(first, 2), batches=2)
    reused = second.scores("taylor", lambda: pytest.fail("computed again"), batches=2)
    assert found.keys() == reused.keys()
    for name, score in found.items():
        assert score.dtype == reused[name].dtype
        assert torch.equal(score, reused[name])
    assert torch.equal(first.calibration()["input_ids"], second.calibration()["input_ids"])
    assert second.store.reused_seconds > 0
    assert first.store.reused_seconds == 0


@pytest.mark.parametrize(("changed", "options"), [({"seed": 1}, {}), ({}, {"batches": 3})])
def test_other_identity_or_options_are_other_scores(tmp_path, identity, changed, options):
    first = subject_with(tmp_path / "scores", identity, tmp_path)
    other = subject_with(tmp_path / "scores", identity | changed, tmp_path)
    first.scores("norms", lambda: {"a": torch.zeros(2)})
    assert other.scores("norms", lambda: {"a": torch.ones(2)}, **options)["a"].tolist() == [1, 1]


def test_broken_file_is_computed_again(tmp_path, identity):
    subject = subject_with(tmp_path / "scores", identity, tmp_path)
    subject.scores("norms", lambda: {"a": torch.zeros(2)})
    (file,) = (tmp_path / "scores").iterdir()
    file.write_bytes(b"\x00" * 20)
    assert subject.scores("norms", lambda: {"a": torch.ones(2)})["a"].tolist() == [1, 1]


def test_shared_memory_and_gradients_can_be_kept(tmp_path, identity):
    subject = subject_with(tmp_path / "scores", identity, tmp_path)
    whole = torch.ones(4, requires_grad=True)
    found = subject.scores("parts", lambda: {"all": whole, "half": whole[:2], "same": whole})
    assert not found["all"].requires_grad
    assert found["half"].tolist() == [1, 1]


def test_magnitude_at_another_budget_reads_the_same_scores(tmp_path, identity):
    plans = []
    for folder in ("shared", "shared", "own"):
        subject = subject_with(tmp_path / folder, identity, tmp_path)
        plans.append(methods.build({"name": "magnitude"}).begin(subject, Budget(keep=0.8 - len(plans) / 10)).plan())
    assert len(list((tmp_path / "shared").iterdir())) == 1
    alone = subject_with(tmp_path / "fresh", identity, tmp_path)
    computed = methods.build({"name": "magnitude"}).begin(alone, Budget(keep=0.7)).plan()
    assert [edit.units.tolist() for edit in computed.edits] == [edit.units.tolist() for edit in plans[1].edits]


def flipped(content):
    return content[:-1] + bytes([content[-1] ^ 1])  # a bit of a number


def moved(content):
    return content.replace(b'"batches":"0"', b'"batches":"9"')


def without_metadata(content):
    return content.replace(b"__metadata__", b"__metabase__")


@pytest.mark.parametrize("damage", [flipped, moved, without_metadata])
def test_a_file_that_was_changed_is_computed_again(tmp_path, identity, damage):
    subject = subject_with(tmp_path / "scores", identity, tmp_path)
    subject.scores("norms", lambda: {"a": torch.zeros(2)})
    (file,) = (tmp_path / "scores").iterdir()
    changed = damage(file.read_bytes())
    assert changed != file.read_bytes()
    file.write_bytes(changed)
    assert subject.scores("norms", lambda: {"a": torch.ones(2)})["a"].tolist() == [1, 1]
