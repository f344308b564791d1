"""What people do with a model that they were given works on an export too: peft, merging, compiling, pipelines."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import random_masks, tiny_model
from tiny_runs import letter_tokenizer
from transformers import logging

from tuneprune import export, families
from tuneprune.compress import compress
from tuneprune.structure import spaces
from tuneprune.structure.plan import Plan

logging.disable_progress_bar()
CASES = [
    ("llama", "width", True),
    ("llama", "width", False),
    ("qwen2", "width", False),
    ("qwen3", "width", False),
    ("phi3", "width", False),
    ("mistral", "width", False),
    ("llama3", "disp", False),
    ("phi3", "head_dim", False),
    ("qwen3", "head_dim", False),
    ("mixtral", "experts", False),
]


def name_of(case):
    variant, space, uniform = case
    return f"{variant}-{space}-{'stock' if uniform else 'ragged'}"


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What the process without tuneprune found, by case."""
    scratch = tmp_path_factory.mktemp("onward")
    for case in CASES:
        variant, space_name, uniform = case
        model = tiny_model(variant, dtype=torch.float32)
        architecture = families.describe(model)
        space = spaces.build(space_name, architecture, model)
        plan = Plan.from_masks(random_masks(space, uniform=uniform), space)
        loader = export.write(compress(model, architecture, space, plan), letter_tokenizer(), scratch / name_of(case))
        assert loader.needs_remote_code == (not uniform)
    (scratch / "jobs.json").write_text(json.dumps([str(scratch / name_of(case)) for case in CASES]))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(scratch / "modules")}
    child = Path(__file__).with_name("onward_child.py")
    command = [sys.executable, "-P", str(child), str(scratch / "jobs.json"), str(scratch / "results.json")]
    subprocess.run(command, env=environment, check=True, cwd=scratch)
    results = json.loads((scratch / "results.json").read_text())
    return {case: results[str(scratch / name_of(case))] for case in CASES}


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_everything_works(found, case):
    assert "crash" not in found[case], found[case]["crash"]
    assert {use: good for use, good in found[case].items() if good is not True} == {}
    assert len(found[case]) > 15
