"""A folder that a killed run was given is that run's again."""

import subprocess
import sys

import pytest
from helpers.tiny_runs import run_content

from tuneprune.config import RunConfig
from tuneprune.errors import ConfigError
from tuneprune.pipeline.identity import FORMAT
from tuneprune.pipeline.output_folder import IDENTITY, SETTINGS, claim
from tuneprune.system.locks import LOCK


def dead_process():
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def take(out, config):
    with claim(out, config, {"format": FORMAT, "around": {}}, resume=True, note=print):
        pass


def test_what_a_killed_run_left_half_written_goes(tmp_path):
    config, out = RunConfig.model_validate(run_content(tmp_path / "data", tmp_path / "model")), tmp_path / "out"
    out.mkdir()
    (out / f".config.yaml.{dead_process()}.partial").write_text("model:")
    take(out, config)
    assert {path.name for path in out.iterdir()} == {SETTINGS, IDENTITY, LOCK}
    (out / "plan").mkdir()
    (out / "plan" / f".plan.json.{dead_process()}.partial").write_text("{")
    take(out, config)
    assert not any((out / "plan").iterdir())


def test_a_folder_of_somebody_else_is_left_alone(tmp_path):
    config, out = RunConfig.model_validate(run_content(tmp_path / "data", tmp_path / "model")), tmp_path / "out"
    left = out / f".thesis.tex.{dead_process()}.partial"
    out.mkdir()
    for path in (left, out / "thesis.tex"):
        path.touch()
    with pytest.raises(ConfigError, match="holds no run"):
        take(out, config)
    assert left.exists()
