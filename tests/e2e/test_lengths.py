"""The length of a tuning in steps, or in epochs of packed rows."""

import json
import math
import re

import pytest
import yaml
from helpers import tiny_runs

from tuneprune.config import load_run_file
from tuneprune.pipeline.checks import rows_per_epoch
from tuneprune.pipeline.validation import check


def write_run(folder, model, tune, **sections):
    run_file = tiny_runs.write_run(folder, model, reference=False, **sections)
    content = yaml.safe_load(run_file.read_text())
    content["tune"].pop("steps")
    content["tune"] |= tune
    run_file.write_text(yaml.safe_dump(content))
    return run_file


@pytest.mark.parametrize("epochs", [0.01, 1, 2.5])
def test_epochs_are_resolved_to_steps_by_the_checks(epochs, tmp_path, model_folder, tuneprune, capsys):
    run_file = write_run(tmp_path, model_folder, {"epochs": epochs})
    checked = check(load_run_file(run_file))
    rows = rows_per_epoch(checked.data)
    steps = max(1, math.ceil(epochs * rows / 4))
    assert (checked.config.tune.steps, checked.config.tune.epochs) == (steps, None)
    assert tuneprune("validate", run_file) == 0
    said = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert f"{steps} steps of 4 rows ({epochs:g} epochs of {rows} rows)" in said


def test_a_run_of_epochs_is_a_run_of_steps(tmp_path, model_folder, tuneprune):
    run_file = write_run(tmp_path, model_folder, {"epochs": 1}, recover={"lora": {"rank": 4}})
    out = tmp_path / "out"
    assert tuneprune("run", run_file, "--out", out) == 0
    resolved = yaml.safe_load((out / "config.yaml").read_text())
    training = json.loads((out / "record.json").read_text())["training"]
    rows = rows_per_epoch(check(load_run_file(run_file)).data)
    steps = math.ceil(rows / 4)
    assert resolved["tune"]["steps"] == resolved["recover"]["steps"] == steps
    assert (training["steps"], training["recover_steps"]) == (round(steps / 2), steps - round(steps / 2))
    assert "epochs" not in resolved["tune"]
    for again in (run_file, out / "config.yaml"):
        assert tuneprune("run", again, "--out", out, "--resume") == 0
    assert tuneprune("run", run_file, "--out", out, "--resume", "--set", "tune.epochs=2") == 2


def test_recovering_takes_epochs(tmp_path, model_folder, tuneprune):
    run_file = write_run(tmp_path, model_folder, {"epochs": 1}, recover={"lora": {"rank": 4}})
    assert tuneprune("recover", model_folder, run_file, "--out", tmp_path / "out") == 0
    resolved = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())
    rows = rows_per_epoch(check(load_run_file(run_file)).data)
    assert resolved["tune"]["steps"] == math.ceil(rows / 4)
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    assert resolved["tune"]["steps"] == record["training"]["recover_steps"]


@pytest.mark.slow
def test_a_comparison_takes_epochs(tmp_path, model_folder, tuneprune):
    run_file = write_run(tmp_path, model_folder, {"epochs": 0.5}, method={"name": "random"})
    out = tmp_path / "out"
    options = ("--methods", "random", "--keep", "80%", "--seeds", "0,1", "--out", out)
    assert tuneprune("compare", run_file, *options) == 0
    records = [json.loads(path.read_text()) for path in out.glob("random-*/record.json")]
    assert {record["budget"]["keep"] for record in records} == {0.8}
    assert len({record["training"]["recover_steps"] for record in records}) == 1


@pytest.mark.parametrize(
    ("tune", "said"),
    [
        ({"epochs": 1, "steps": 3}, "`tune`: `steps` and `epochs` both give the length; write one of them."),
        ({"epochs": 0}, "`tune.epochs`: Input should be greater than 0"),
        ({"epochs": float("inf")}, "`tune.epochs`: Input should be a finite number"),
    ],
)
def test_lengths_that_cannot_be(tune, said, tmp_path, model_folder, tuneprune, capsys):
    assert tuneprune("validate", write_run(tmp_path, model_folder, tune)) == 2
    assert said in capsys.readouterr().err


def test_some_linears_are_tuned(tmp_path, model_folder, tuneprune):
    lora = {"lora": {"rank": 2, "target_modules": ["self_attn.q_proj", "down_proj"]}}
    run_file = write_run(tmp_path, model_folder, {"steps": 4} | lora)
    assert tuneprune("run", run_file, "--out", tmp_path / "out") == 0
    proof = json.loads((tmp_path / "out" / "proof.json").read_text())
    assert proof["parameters"]["share_total"] <= 0.6


def test_packed_linears_are_found_where_the_smaller_model_has_them_apart(tmp_path, tuneprune):
    model = tiny_runs.save_model(tmp_path / "base", "phi3")
    lora = {"lora": {"rank": 2, "target_modules": ["qkv_proj"]}}
    uniform = {"keep": 0.7, "per_layer": "uniform"}
    run_file = write_run(tmp_path, model, {"steps": 4} | lora, method={"name": "magnitude"}, budget=uniform)
    assert tuneprune("run", run_file, "--out", tmp_path / "out") == 0
    assert json.loads((tmp_path / "out" / "model" / "config.json").read_text())["model_type"] == "mistral"


@pytest.mark.parametrize(
    ("method", "names", "said"),
    [
        (tiny_runs.METHOD, ["q_prj"], "self_attn.q_proj, self_attn.k_proj"),
        (tiny_runs.METHOD, "lm_head", "no linear of this model's layers is called `lm_head`"),
        (tiny_runs.METHOD, [], "`tune.lora.target_modules`"),
        ({"name": "loraprune"}, "q_proj", "method `loraprune` decides by what LoRA learns"),
        ({"name": "apt"}, "q_proj", "method `apt` decides by what LoRA learns"),
    ],
)
def test_linears_that_cannot_be_tuned(method, names, said, tmp_path, model_folder, tuneprune, capsys):
    run_file = write_run(tmp_path, model_folder, {"steps": 4, "lora": {"target_modules": names}}, method=method)
    assert tuneprune("validate", run_file) == 2
    message = capsys.readouterr().err
    assert said in message
    assert names != ["q_prj"] or "Did you mean `q_proj`?" in message
