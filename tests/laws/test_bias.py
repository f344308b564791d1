"""A plan that adds biases: masked == compressed == reloaded, counted exactly, and tuned like any other."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.precision import EXACT
from helpers.tiny import CASES, logits, probe_ids, random_masks, tiny_model
from helpers.toy_tokenizer import tiny_tokenizer
from safetensors.torch import save_file

from tuneprune import export, families
from tuneprune.budget import count_parameters
from tuneprune.compress import compress, rewrite
from tuneprune.errors import PlanMismatch
from tuneprune.structure import spaces
from tuneprune.structure.edits import Bias
from tuneprune.structure.masks import Gates
from tuneprune.structure.plan import Plan
from tuneprune.train.config import LoraOptions
from tuneprune.train.lora import inject_lora, merge_lora

pytestmark = pytest.mark.usefixtures("full_precision")

WIDTHS = ("width", "head_dim", "disp", "residual")
"""Spaces of layers that stay; biases and dropped layers do not combine."""


def biased_plan(architecture, space, masks):
    """The masks, and a constant added to every linear of the first block and to one of the last."""
    modules = [m for m in architecture.linears() if m.startswith(f"{architecture.blocks[0].path}.")]
    modules.append(architecture.blocks[-1].mlp.down)
    torch.manual_seed(5)
    biases = tuple(Bias(m, torch.randn(space.shapes[f"{m}.weight"][0], dtype=torch.double)) for m in modules)
    plan = Plan.from_masks(masks, space)
    return Plan((*plan.edits, *biases), plan.space)


def parts(variant, space_name, **how):
    model = tiny_model(variant)
    architecture = families.describe(model)
    space = spaces.build(space_name, architecture, model)
    masks = random_masks(space, **how)
    return model, architecture, space, masks, biased_plan(architecture, space, masks)


def masked_logits(model, architecture, space, masks, plan):
    rewritten = rewrite(copy.deepcopy(model), architecture, space, plan)
    with Gates(rewritten, space)(masks):
        return logits(rewritten)


@pytest.mark.parametrize("uniform", [False, True])
@pytest.mark.parametrize("case", [case for case in CASES if case[1] in WIDTHS], ids="-".join)
def test_masked_equals_compressed_and_is_counted(case, uniform):
    model, architecture, space, masks, plan = parts(*case, uniform=uniform)
    with Gates(model, space)(masks):
        plain = logits(model)
    expected = masked_logits(model, architecture, space, masks, plan)
    assert (expected - plain).abs().max() > 1e-3
    small = compress(model, architecture, space, plan)
    torch.testing.assert_close(logits(small), expected, **EXACT)
    assert sum(p.numel() for p in small.parameters()) == count_parameters(space, masks) + plan.added(space)


def test_a_bias_that_is_there_takes_the_constant_and_the_class_stays_stock():
    model, architecture, space, masks, plan = parts("llama_mha_biased", "width", uniform=True)
    expected = masked_logits(model, architecture, space, masks, plan)
    small = compress(model, architecture, space, plan)
    assert plan.added(space) == 0
    assert not hasattr(small.config, "pruned")
    torch.testing.assert_close(logits(small), expected, **EXACT)


def test_a_new_bias_needs_the_shipped_file():
    model, architecture, space, _, plan = parts("llama", "width", uniform=True)
    small = compress(model, architecture, space, plan)
    module = architecture.blocks[-1].mlp.down
    outputs, inputs = small.get_parameter(f"{module}.weight").shape
    assert small.config.pruned["linears"][module] == [inputs, outputs, True]


@pytest.mark.parametrize("space_name", WIDTHS)
def test_lora_on_a_model_with_new_biases_merges_exactly(space_name):
    model, architecture, space, _, plan = parts("llama", space_name)
    small = compress(model, architecture, space, plan)
    inject_lora(small, architecture, LoraOptions(rank=2), seed=0)
    for name, parameter in small.named_parameters():
        if "lora_" in name:
            parameter.data = 0.3 * torch.randn(parameter.shape, dtype=torch.double)
        else:
            assert not parameter.requires_grad
    expected = logits(small)
    merge_lora(small, architecture)
    torch.testing.assert_close(logits(small), expected, **EXACT)


@pytest.mark.parametrize(
    "variants", [("llama",), pytest.param(("qwen2", "phi3"), marks=pytest.mark.slow)], ids="-".join
)
def test_reloaded_equals_masked_in_a_process_without_tuneprune(tmp_path, variants):
    jobs = []
    for variant in variants:
        for space_name in WIDTHS:
            model, architecture, space, masks, plan = parts(variant, space_name)
            expected = masked_logits(model, architecture, space, masks, plan)
            folder = tmp_path / f"{variant}-{space_name}"
            export.write(compress(model, architecture, space, plan), tiny_tokenizer(), folder)
            save_file({"input_ids": probe_ids(), "logits": expected}, folder.with_suffix(".expected"))
            jobs.append({"folder": str(folder), "ragged": True, "full": variant != "llama" or space_name == "head_dim"})
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    child = Path(__file__).with_name("reload_child.py")
    command = [sys.executable, "-P", str(child), str(tmp_path / "jobs.json"), str(tmp_path / "results.json")]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    subprocess.run(command, env=environment, check=True, cwd=tmp_path)
    found = json.loads((tmp_path / "results.json").read_text())
    for job in jobs:
        facts = found[job["folder"]]
        assert "crash" not in facts, facts["crash"]
        assert facts["difference"] < EXACT["rtol"]
        assert facts["warnings"] == []
        uses = ("round_trip", "lora", "bfloat16", "inner_model", "dynamic_cache", "gradient_checkpointing")
        assert {use: facts[use] for use in uses if job["full"]} == dict.fromkeys(uses if job["full"] else (), True)


def test_biases_and_dropped_layers_do_not_combine():
    model = tiny_model("llama")
    architecture = families.describe(model)
    space = spaces.build("depth", architecture, model)
    masks = space.ones() | {architecture.blocks[0].path: torch.zeros(1)}
    with pytest.raises(PlanMismatch, match="it can do only one"):
        compress(model, architecture, space, biased_plan(architecture, space, masks))
