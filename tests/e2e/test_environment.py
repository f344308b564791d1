"""Environments that a shell, a cluster or a container sets up."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import tiny_runs

LAUNCHED = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29577"}
REFUSED = {
    "a world without ranks": ({"WORLD_SIZE": "2"}, ["WORLD_SIZE=2", "RANK", "torchrun"]),
    "a world that is not a number": ({"WORLD_SIZE": "many"}, ["WORLD_SIZE=many"]),
    "deepspeed of another job": ({"ACCELERATE_USE_DEEPSPEED": "true"}, ["ACCELERATE_USE_DEEPSPEED", "Unset"]),
    "fsdp of another job": ({"ACCELERATE_USE_FSDP": "true"}, ["ACCELERATE_USE_FSDP", "Unset"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_environment_of_another_job_is_refused(name, tmp_path, tuneprune, capsys, monkeypatch, model_folder):
    variables, said = REFUSED[name]
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    run_file = tiny_runs.write_run(tmp_path, model_folder)
    assert tuneprune("run", run_file, "--out", tmp_path / "out") == 2
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    assert all(fragment in printed.splitlines()[-1] for fragment in said), printed
    assert not (tmp_path / "out").exists()


def command(*arguments, **environment):
    sources = str(Path(__file__).parents[2] / "src")
    return subprocess.Popen(
        [sys.executable, "-m", "tuneprune", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": sources, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.slow
def test_missing_processes_are_reported(tmp_path, model_folder):
    run_file = tiny_runs.write_run(tmp_path, model_folder)
    process = command("run", run_file, "--out", tmp_path / "out", **LAUNCHED)
    try:
        assert any(b"waiting for 1 of 2 processes (WORLD_SIZE=2)" in line for line in process.stderr)
    finally:
        process.kill()
        process.communicate()


def test_any_encoding_prints(tmp_path):
    process = command("methods", PYTHONIOENCODING="ascii", PYTHONUTF8="0", LC_ALL="C")
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert out.decode("ascii").startswith("apt")


def test_python_without_docstrings_is_refused():
    process = command("methods", PYTHONOPTIMIZE="2")
    _, err = process.communicate()
    assert process.returncode == 2
    assert b"PYTHONOPTIMIZE" in err
    assert b"Traceback" not in err


def test_results_have_the_permissions_of_the_umask(uninterrupted):
    umask = os.umask(0)
    os.umask(umask)
    modes = {stat.S_IMODE(file.stat().st_mode) for file in (uninterrupted / "whole").rglob("*") if file.is_file()}
    assert modes == {0o666 & ~umask}
