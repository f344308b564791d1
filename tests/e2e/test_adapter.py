"""A base with a user's LoRA adapter: the merged model is pruned, and the result names both."""

import json

import pytest
import torch
from e2e.refusals import assert_refused
from helpers import tiny_runs
from helpers.tiny import logits
from transformers import AutoModelForCausalLM

from tuneprune import families
from tuneprune.model.loading import load_model

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing"),  # peft uses the old name
    pytest.mark.filterwarnings("ignore:.*tie"),  # peft warns that it unties embeddings
]
CASES = {
    "rank pattern": ("llama", {"rank_pattern": {r".*o_proj": 2}}, "random"),
    "untied head": ("llama3", {"modules_to_save": ["lm_head"]}, "atp"),
    "packed linears": ("phi3", {"use_rslora": True}, "magnitude"),
    "dora": ("qwen3", {"use_dora": True}, "magnitude"),
}


@pytest.mark.parametrize("name", CASES)
def test_run(tmp_path, tuneprune, capsys, name):
    variant, options, method = CASES[name]
    base, adapter, out = tmp_path / "base", tmp_path / "my-adapter", tmp_path / "out"
    tiny_runs.save_model(base, variant)
    tiny_runs.make_adapter(adapter, variant, **options)
    model = {"base": str(base), "adapter": str(adapter)}
    method = {"name": method} if method != "atp" else dict(tiny_runs.METHOD)
    run_file = tiny_runs.write_run(tmp_path, base, model=model, method=method, tune={"steps": 2}, reference=False)
    assert tuneprune("validate", run_file) == 0
    capsys.readouterr()
    assert tuneprune("run", run_file, "--out", out) == 0
    record, proof = (json.loads((out / file).read_text()) for file in ("record.json", "proof.json"))
    assert record["model"]["adapter"] == str(adapter)
    assert "with the LoRA adapter `my-adapter`" in (out / "model" / "README.md").read_text()
    assert proof["logits"]["max_rel_diff"] < 1e-5
    merged = load_model(str(base), str(adapter), torch.device("cpu"))
    assert proof["parameters"]["dense_total"] == sum(parameter.numel() for parameter in merged.parameters())
    assert "arn" not in capsys.readouterr().err.replace("learn", "")  # warnings of peft


def test_plan_and_compress_take_the_merged_model(tmp_path, tuneprune, capsys):
    """Keeping everything results in the merged model; without the adapter, in the base."""
    base, adapter = tiny_runs.save_model(tmp_path / "base"), tmp_path / "adapter"
    expected = tiny_runs.make_adapter(adapter)
    run_file = tiny_runs.write_run(tmp_path, base, model={"base": str(base), "adapter": str(adapter)})
    keep_all = ("--set", "method=magnitude", "--set", "budget.keep=1.0")
    assert tuneprune("plan", run_file, *keep_all, "--out", tmp_path / "planned") == 0
    plan = tmp_path / "planned" / "plan"
    assert tuneprune("compress", base, "--plan", plan, "--adapter", adapter, "--out", tmp_path / "with") == 0
    assert tuneprune("compress", base, "--plan", plan, "--out", tmp_path / "without") == 0
    found = {name: AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("with", "without")}
    torch.testing.assert_close(logits(found["with"]), expected, rtol=1e-4, atol=1e-4)
    assert families.describe(found["with"]) == families.describe(found["without"])
    assert (logits(found["without"]) - expected).abs().max() > 1e-2


@pytest.mark.parametrize("command", ["run", "validate", "compare", "plan", "compress"])
def test_an_adapter_of_another_base_is_refused_before_anything_is_written(tmp_path, tuneprune, capsys, command):
    base, adapter, out = tiny_runs.save_model(tmp_path / "base"), tmp_path / "adapter", tmp_path / "out"
    tiny_runs.make_adapter(adapter, changes={"intermediate_size": 64})
    run_file = tiny_runs.write_run(tmp_path, base, method={"name": "magnitude"})
    arguments = [command, run_file]
    if command == "compress":
        assert tuneprune("plan", run_file, "--out", tmp_path / "planned") == 0
        arguments = [command, base, "--plan", tmp_path / "planned" / "plan", "--adapter", adapter]
    else:
        arguments += ["--set", f"model.adapter={adapter}"]
    arguments += ["--methods", "magnitude"] if command == "compare" else []
    arguments += ["--out", out] if command != "validate" else []
    capsys.readouterr()
    assert_refused(capsys, tuneprune(*arguments), [str(adapter), "does not belong to model.base", "an adapter of this"])
    assert not out.exists()
