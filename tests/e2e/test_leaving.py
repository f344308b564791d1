"""When one process of a run is stopped, fails or is killed, the others exit too instead of waiting for it."""

import os
import signal
import time

import pytest
from e2e.launched import Two
from helpers import tiny_runs

SAME = ("model/model.safetensors", "plan/plan.json", "plan/plan.safetensors", "scores.json")


@pytest.fixture(scope="module")
def run_file(tmp_path_factory, model_folder):
    folder = tmp_path_factory.mktemp("two")
    return tiny_runs.write_run(folder, model_folder, tune={"lora": {"rank": 2, "dropout": 0.1}}, reference=False)


@pytest.fixture(scope="module")
def whole(run_file, server):
    """The folder of a run of two processes that was not interrupted."""
    two = Two(server, run_file.parent / "logs", "run", run_file, "--out", run_file.parent / "whole")
    assert two.end() == [0, 0], two.said()
    return run_file.parent / "whole"


@pytest.mark.parametrize("moment", ["checkpoints/step-000002", "plan/plan.json"])  # at the latter, one process waits
def test_stopped_and_resumed_processes_give_the_same_bytes(whole, run_file, server, tmp_path, moment):
    arguments = ("run", run_file, "--out", tmp_path / "out")
    two = Two(server, tmp_path / "first", *arguments).until(tmp_path / "out" / moment)
    os.kill(two.pids[1], signal.SIGTERM)
    assert two.end() == [75, 75], two.said()
    assert "--resume" in two.said()[0]
    assert two.said()[1] == ""
    two = Two(server, tmp_path / "second", *arguments, "--resume")
    assert two.end() == [0, 0], two.said()
    for name in SAME:
        assert (tmp_path / "out" / name).read_bytes() == (whole / name).read_bytes(), name


@pytest.mark.parametrize("lost", [0, 1])
def test_other_process_ends_when_one_is_killed(run_file, server, tmp_path, lost):
    two = Two(server, tmp_path, "run", run_file, "--set", "tune.steps=4000", "--out", tmp_path / "out")
    two.until(tmp_path / "out" / "metrics.jsonl")
    os.kill(two.pids[lost], signal.SIGKILL)
    killed = time.monotonic()
    expected = [2, 2]
    expected[lost] = -signal.SIGKILL
    assert two.end() == expected
    assert time.monotonic() - killed < 20
    assert "exited unexpectedly" in two.said()[1 - lost]
    assert "Traceback" not in two.said()[1 - lost]


def test_error_in_one_process_ends_all(run_file, server, tmp_path):
    arguments = ["run", run_file, "--out", tmp_path / "out"]
    others = [*arguments, "--set", "data.train=[{path: /only/here.jsonl}]"]
    two = Two(server, tmp_path, *arguments, others=others)
    assert two.end() == [2, 2]
    assert "Process 1: " in two.said()[0]
    assert "/only/here.jsonl" in two.said()[0]
    assert not (tmp_path / "out" / "metrics.jsonl").exists()
