"""Bases of 16 bits: rescaled weights are rounded before the proof, and the report shows the effect of rounding."""

import json

import pytest
import torch
from helpers import tiny_runs
from transformers import AutoModelForCausalLM

CASES = [
    ("llama", "residual", "atp", {}),
    ("llama", "residual", "pat", {}),
    ("llama", "residual", "slicegpt", {}),
    ("qwen3", "residual", "atp", {}),
    ("olmo2", "width", "atp", {"per_layer": "uniform"}),
    ("olmo2", "residual", "atp", {}),
    ("qwen3", "head_dim", "atp", {}),
    ("gemma3", "head_dim", "atp", {}),
]


@pytest.mark.parametrize(("variant", "space", "method", "budget"), CASES)
def test_a_base_of_16_bits_is_proven(tmp_path, tuneprune, variant, space, method, budget):
    model = tiny_runs.save_model(tmp_path / "base", variant)
    stored = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    stored.save_pretrained(model)
    options = {"name": method} if method != "atp" else {}
    run_file = tiny_runs.write_run(
        tmp_path, model, space=space, method=options, budget=budget, reference=False, tune={"steps": 3}
    )
    out = tmp_path / "out"

    assert tuneprune("run", run_file, "--out", out) == 0

    proof = json.loads((out / "proof.json").read_text())
    assert proof["logits"]["max_rel_diff"] < 1e-5
    assert proof["cut"]["max_rel_diff"] < 1e-5
    assert 1e-5 < proof["rounding"]["max_rel_diff"] < 0.1  # the effect of storing in bfloat16
    assert "bfloat16" in (out / "report.html").read_text()


def test_a_base_of_32_bits_is_not_rounded(uninterrupted):
    assert json.loads((uninterrupted / "whole" / "proof.json").read_text())["rounding"] is None
