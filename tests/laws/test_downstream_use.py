"""Exported models work downstream as any other: peft, merging, compiling, pipelines."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.tiny import random_masks, tiny_model
from helpers.tiny_runs import letter_tokenizer
from transformers import logging

from tuneprune import export, families
from tuneprune.compress import compress
from tuneprune.structure import spaces
from tuneprune.structure.plan import Plan

logging.disable_progress_bar()
QUICK = [("llama", "width", True), ("phi3", "head_dim", False), ("mixtral", "experts", False)]
OTHERS = [
    ("llama", "width", False),
    ("qwen2", "width", False),
    ("qwen3", "width", False),
    ("phi3", "width", False),
    ("mistral", "width", False),
    ("llama3", "disp", False),
    ("qwen3", "head_dim", False),
]


def name_of(case):
    variant, space, uniform = case
    return f"{variant}-{space}-{'stock' if uniform else 'ragged'}"


@pytest.mark.parametrize("cases", [QUICK, pytest.param(OTHERS, marks=pytest.mark.slow)], ids=["some", "others"])
def test_everything_works(tmp_path, cases):
    for case in cases:
        variant, space_name, uniform = case
        model = tiny_model(variant, dtype=torch.float32)
        architecture = families.describe(model)
        space = spaces.build(space_name, architecture, model)
        plan = Plan.from_masks(random_masks(space, uniform=uniform), space)
        loader = export.write(compress(model, architecture, space, plan), letter_tokenizer(), tmp_path / name_of(case))
        assert loader.needs_remote_code == (not uniform)
    (tmp_path / "jobs.json").write_text(json.dumps([str(tmp_path / name_of(case)) for case in cases]))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    child = Path(__file__).with_name("downstream_child.py")
    command = [sys.executable, "-P", str(child), str(tmp_path / "jobs.json"), str(tmp_path / "results.json")]
    subprocess.run(command, env=environment, check=True, cwd=tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    assert len(results) == len(cases)
    for folder, found in results.items():
        assert "crash" not in found, f"{folder}: {found['crash']}"
        assert {use: good for use, good in found.items() if good is not True} == {}, folder
        assert len(found) > 15
