"""A run whose model is a GGUF file."""

import json

import pytest
import yaml
from e2e.refusals import assert_refused
from helpers import tiny_runs
from helpers.gguf_files import tiny, write_gguf
from huggingface_hub import constants

from tuneprune.system.progress import remark


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "cache"))
    remark.cache_clear()
    write_gguf(tmp_path / "tiny.gguf", tiny("llama", "bf16", max_position_embeddings=128), "bf16")
    return tmp_path / "tiny.gguf"


def test_run_and_resume(tmp_path, file, tuneprune, capsys):
    out = tmp_path / "out"
    run_file = tiny_runs.write_run(tmp_path, file, budget={"keep": 0.8}, tune={"steps": 2}, reference=False)
    assert tuneprune("validate", run_file) == 0
    assert "read as bfloat16" in capsys.readouterr().err
    assert tuneprune("run", run_file, "--out", out) == 0
    capsys.readouterr()
    assert json.loads((out / "proof.json").read_text())["logits"]["max_rel_diff"] < 1e-2
    assert json.loads((out / "record.json").read_text())["model"]["id"] == str(file)
    assert yaml.safe_load((out / "config.yaml").read_text())["model"]["base"] == str(file)
    assert json.loads((out / "model" / "config.json").read_text())["dtype"] == "bfloat16"
    card = (out / "model" / "README.md").read_text()
    assert "tiny.gguf" in card
    assert "base_model" not in card
    assert str(tmp_path) not in card
    assert tuneprune("run", run_file, "--out", out, "--resume") == 0
    write_gguf(file, tiny("llama", "bf16", max_position_embeddings=128, seed=1), "bf16")
    remark.cache_clear()
    capsys.readouterr()
    assert tuneprune("run", run_file, "--out", out, "--resume") == 2
    assert "another model (tiny.gguf: was" in capsys.readouterr().err


def test_other_commands(tmp_path, file, tuneprune, capsys):
    assert tuneprune("inspect", file) == 0
    assert "stored as: bfloat16" in capsys.readouterr().out
    assert tuneprune("evaluate", file, "--suite", "clinic", "--limit", 2) == 0
    assert "clinic_text" in capsys.readouterr().out
    run_file = tiny_runs.write_run(tmp_path, file, budget={"keep": 0.8}, method={"name": "magnitude"})
    assert tuneprune("plan", run_file, "--out", tmp_path / "planned") == 0
    plan = tmp_path / "planned" / "plan"
    assert tuneprune("compress", file, "--plan", plan, "--out", tmp_path / "small") == 0
    assert (tmp_path / "small" / "model.safetensors").is_file()
    assert tuneprune("recover", file, run_file, "--out", tmp_path / "tuned", "--set", "tune.steps=1") == 0
    capsys.readouterr()


def test_a_cache_that_cannot_be_written(tmp_path, file, tuneprune, capsys, monkeypatch):
    (tmp_path / "full").write_text("")
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "full"))
    assert_refused(capsys, tuneprune("inspect", file), ["cannot be converted", "set HF_HOME"])
