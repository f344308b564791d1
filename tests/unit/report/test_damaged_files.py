"""Damaged or foreign files of scores, manifests and logs."""

import json

import pytest

from tuneprune.errors import DataError
from tuneprune.pipeline import comparison_runs
from tuneprune.pipeline.record import read_metrics
from tuneprune.report import load_scores


@pytest.mark.parametrize("text", ["", "[]", "\x00", '{"dense": 3}', '{"dense": {"a": {"b": "x"}}}', "[" * 100_000])
def test_files_that_are_not_scores_are_refused(text, tmp_path):
    (tmp_path / "scores.json").write_text(text)
    with pytest.raises(DataError, match="cannot be read as scores"):
        load_scores(tmp_path / "scores.json")


def test_scores_are_read_as_they_were_written(tmp_path):
    known = {"dense": {"task": {"accuracy": 0.5}}}
    (tmp_path / "scores.json").write_text(json.dumps(known))
    assert load_scores(tmp_path / "scores.json") == known
    assert load_scores(tmp_path / "none.json") == {}


@pytest.mark.parametrize("name", ["../elsewhere", "..", ".", "/etc", "a/b"])
def test_a_manifest_cannot_name_a_folder_elsewhere(name, tmp_path):
    (tmp_path / comparison_runs.MANIFEST).write_text(json.dumps({"schema": 1, "cells": {name: "magnitude"}}))
    with pytest.raises(DataError, match="not a run of a comparison"):
        comparison_runs.finished(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"cells": 3}', '{"cells": ["a"]}', '{"cells": {"a": 1}}'])
def test_a_file_that_is_not_a_manifest_is_refused(text, tmp_path):
    (tmp_path / comparison_runs.MANIFEST).write_text(text)
    with pytest.raises(DataError, match=r"cannot be read|not a run"):
        comparison_runs.finished(tmp_path)


@pytest.mark.parametrize("line", ["{", "3", "[]", "{}", '{"step": "x"}', '{"step": Infinity}', "[" * 100_000])
def test_a_damaged_log_is_refused_with_its_line(line, tmp_path):
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1}}\n{line}\n')
    with pytest.raises(DataError, match=r"metrics\.jsonl:2 is not a logged step"):
        read_metrics(tmp_path / "metrics.jsonl")
