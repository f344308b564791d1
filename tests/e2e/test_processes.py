"""Several processes decide and tune like one process with the same global batch."""

import json
import os
import subprocess
import sys

import pytest
import torch
from e2e.launched import Two, environment, free_port
from helpers import tiny_runs
from helpers.precision import TUNED

from tuneprune.structure.plan import Plan


@pytest.mark.parametrize(
    ("method", "space"),
    [
        ({"name": "atp"}, "width"),
        ({"name": "atp", "regulariser": "lasso", "decisions": "sampled"}, "width"),
        ({"name": "loraprune"}, "head_dim"),  # scores from LoRA's gradients
        ({"name": "hesso-cric"}, "width"),  # gradients averaged inside backward
        ({"name": "apt"}, "width"),  # sums averaged after backward
        ({"name": "disp_llm"}, "disp"),  # parameters in the loop's optimiser
    ],
)
def test_two_processes_equal_one(tmp_path, model_folder, server, method, space):
    run_file = tiny_runs.write_run(tmp_path, model_folder, method=method, space=space, reference=False)
    log = tmp_path / "log"
    assert server.run("run", run_file, "--out", tmp_path / "one", log=log) == 0, log.read_text()

    two = Two(server, tmp_path, "run", run_file, "--out", tmp_path / "two")
    assert two.end() == [0, 0], two.said()

    plans = [Plan.load(tmp_path / name / "plan") for name in ("one", "two")]
    assert [edit.units.tolist() for edit in plans[0].edits] == [edit.units.tolist() for edit in plans[1].edits]
    alone, *together = (torch.load(tmp_path / file) for file in ("one/rank-0.pt", "two/rank-0.pt", "two/rank-1.pt"))
    for found in together:
        for name, mask in alone["masks"].items():
            assert torch.equal(mask, found["masks"][name])
        for name, weight in alone["weights"].items():
            torch.testing.assert_close(found["weights"][name], weight, **TUNED)
    for name, weight in together[0]["weights"].items():
        assert torch.equal(weight, together[1]["weights"][name])
    assert "report:" in two.said()[0]
    assert two.said()[1] == ""


def test_batch_that_cannot_be_shared(tmp_path, model_folder, server):
    run_file = tiny_runs.write_run(tmp_path, model_folder, tune={"batch_size": 3})
    two = Two(server, tmp_path, "run", run_file, "--out", tmp_path / "out")
    assert two.end() == [2, 2]
    assert "tune.batch_size=3 cannot be shared by 2 processes" in two.said()[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_torchrun(tmp_path, model_folder):
    run_file = tiny_runs.write_run(tmp_path, model_folder, reference=False, tune={"steps": 2})
    launch = ["torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port())]
    command = [sys.executable, "-m", *launch, "-m", "tuneprune", "run", str(run_file), "--out", str(tmp_path / "out")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=170, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("report:") == 1
    assert json.loads((tmp_path / "out" / "record.json").read_text())["environment"]["processes"] == 2


def test_comparison_by_two_processes(tmp_path, model_folder, server):
    run_file = tiny_runs.write_run(tmp_path, model_folder, tune={"steps": 2})
    arguments = ("compare", run_file, "--methods", "magnitude", "--out", tmp_path / "out")
    two = Two(server, tmp_path, *arguments)
    assert two.end() == [0, 0], two.said()
    assert "magnitude" in (tmp_path / "out" / "table.md").read_text()
    assert two.said()[1] == ""
    alone = environment(0, free_port())
    refused = server.start(*arguments, "--resume", "--jobs", 2, log=tmp_path / "log", **alone)
    assert server.wait(refused) == 2
    assert "--jobs 2" in (tmp_path / "log").read_text()
