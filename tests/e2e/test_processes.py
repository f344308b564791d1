"""Several processes decide and tune like one at the same global batch; a run that talks to its neighbours is quiet."""

import json
import os
import socket
import subprocess
import sys

import pytest
import tiny_runs
import torch

from tuneprune.structure.plan import Plan


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment(rank, port):
    """What `accelerate launch` and torchrun tell a process."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "true",
    }


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

    port = free_port()
    arguments = ("run", run_file, "--out", tmp_path / "two")
    pids = [server.start(*arguments, log=tmp_path / f"log{rank}", **environment(rank, port)) for rank in range(2)]
    logs = [tmp_path / "log0", tmp_path / "log1"]
    assert [server.wait(pid) for pid in pids] == [0, 0], "\n".join(path.read_text() for path in logs)

    plans = [Plan.load(tmp_path / name / "plan") for name in ("one", "two")]
    assert [edit.units.tolist() for edit in plans[0].edits] == [edit.units.tolist() for edit in plans[1].edits]
    alone, *together = (torch.load(tmp_path / file) for file in ("one/rank-0.pt", "two/rank-0.pt", "two/rank-1.pt"))
    for found in together:
        for name, mask in alone["masks"].items():
            assert torch.equal(mask, found["masks"][name])
        for name, weight in alone["weights"].items():
            torch.testing.assert_close(found["weights"][name], weight, rtol=1e-5, atol=1e-5)
    for name, weight in together[0]["weights"].items():
        assert torch.equal(weight, together[1]["weights"][name])
    assert "report:" in logs[0].read_text()
    assert logs[1].read_text() == ""


def test_batch_that_cannot_be_shared(tmp_path, model_folder, server):
    run_file = tiny_runs.write_run(tmp_path, model_folder, tune={"batch_size": 3})
    port = free_port()
    pids = [
        server.start("run", run_file, "--out", tmp_path / "out", log=tmp_path / f"log{rank}", **environment(rank, port))
        for rank in range(2)
    ]
    assert [server.wait(pid) for pid in pids] == [2, 2]
    assert "tune.batch_size=3 cannot be shared by 2 processes" in (tmp_path / "log0").read_text()
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_torchrun(tmp_path, model_folder):
    run_file = tiny_runs.write_run(tmp_path, model_folder, reference=False, tune={"steps": 2})
    launch = ["torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port())]
    command = [sys.executable, "-m", *launch, "-m", "tuneprune", "run", str(run_file), "--out", str(tmp_path / "out")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=170, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("report:") == 1
    assert json.loads((tmp_path / "out" / "record.json").read_text())["environment"]["processes"] == 2


def test_comparison_by_two_processes(tmp_path, model_folder, server):
    run_file = tiny_runs.write_run(tmp_path, model_folder, tune={"steps": 2})
    arguments = ("compare", run_file, "--methods", "magnitude", "--out", tmp_path / "out")
    port, logs = free_port(), [tmp_path / "log0", tmp_path / "log1"]
    pids = [server.start(*arguments, log=logs[rank], **environment(rank, port)) for rank in range(2)]
    assert [server.wait(pid) for pid in pids] == [0, 0], "\n".join(path.read_text() for path in logs)
    assert "magnitude" in (tmp_path / "out" / "table.md").read_text()
    assert logs[1].read_text() == ""
    refused = server.start(*arguments, "--resume", "--jobs", 2, log=tmp_path / "log", **environment(0, port))
    assert server.wait(refused) == 2
    assert "--jobs 2" in (tmp_path / "log").read_text()
