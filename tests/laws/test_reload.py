"""Law 6: export -> reload == compressed, for every family and space, in a process that has no tuneprune."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from matrix import cell
from safetensors.torch import load_file, save_file
from tiny import (
    CASES,
    DENSE,
    NO_NARROW_HEADS,
    NO_NARROW_STREAM,
    ROUNDED,
    SPACES,
    UNGATED,
    VARIANTS,
    probe_ids,
    random_masks,
    routed_plan,
    tiny_model,
)
from toy_tokenizer import tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, logging

from tuneprune import export, families
from tuneprune.compress import compress
from tuneprune.structure import spaces
from tuneprune.structure.edits import Rotate
from tuneprune.structure.plan import Plan
from tuneprune.structure.routing import simulated

logging.disable_progress_bar()
ROOT = Path(__file__).parents[2]
MODELS = Path(os.environ.get("TUNEPRUNE_MODELS", ROOT.parent / "shared" / "models"))
TOY = [(*case, uniform) for case in CASES for uniform in (False, True)]
STOCK = ("width", "experts")
FULL = [case for case in TOY if not case[2] or case[1] in STOCK]  # the others differ in widths only, or not at all
REAL = [
    (checkpoint, space, uniform)
    for checkpoint in ("stories260K", "babyllama-char361-1M")
    for space, uniform in (
        ("width", False),
        ("width", True),
        ("head_dim", False),
        ("disp", False),
        ("residual", False),
        ("depth", False),
    )
]
USES = (
    "dynamic_cache",
    "static_cache",
    "left_padding",
    "left_padding_eager",
    "gradient_checkpointing",
    "lora",
    "round_trip",
    "inner_model",
    "attentions",
    "bfloat16",
)


def export_pruned(model, tokenizer, ids, space_name, uniform, folder):
    """Prune at random masks, export, and leave what the masked model said beside the folder."""
    architecture = families.describe(model)
    space = spaces.build(space_name, architecture, model)
    plan = Plan.from_masks(random_masks(space, uniform=uniform), space)
    return export_plan(model, tokenizer, ids, architecture, space, plan, folder)


def export_plan(model, tokenizer, ids, architecture, space, plan, folder):
    """Prune by a plan, export, and leave what the simulation on the dense model said beside the folder."""
    with torch.no_grad(), simulated(model, space, plan):
        expected = model(input_ids=ids, use_cache=False).logits
    small = compress(model, architecture, space, plan)
    loader = export.write(small, tokenizer, folder)
    save_file({"input_ids": ids, "logits": expected}, folder.with_suffix(".expected"))
    return {"parameters": space.count(plan.widths(space)) + plan.added(space), "loader": loader}


def run_child(jobs, scratch):
    """What the process without tuneprune found, by folder."""
    (scratch / "jobs.json").write_text(json.dumps(jobs))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(scratch / "modules")}
    child = Path(__file__).with_name("reload_child.py")
    command = [sys.executable, "-P", str(child), str(scratch / "jobs.json"), str(scratch / "results.json")]
    subprocess.run(command, env=environment, check=True, cwd=scratch)
    return json.loads((scratch / "results.json").read_text())


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    """Every toy export with what was written and what the child found, by variant, space and uniformity."""
    scratch = tmp_path_factory.mktemp("toys")
    written = {}
    for case in TOY:
        variant, space_name, uniform = case
        folder = scratch / "-".join(map(str, case))
        written[case] = {"folder": folder} | export_pruned(
            tiny_model(variant), tiny_tokenizer(), probe_ids(), space_name, uniform, folder
        )
    jobs = [
        {
            "folder": str(facts["folder"]),
            "ragged": facts["loader"].needs_remote_code,
            "full": case in FULL,
        }
        for case, facts in written.items()
    ]
    found = run_child(jobs, scratch)
    return {case: facts | {"found": found[str(facts["folder"])]} for case, facts in written.items()}


@pytest.fixture(params=TOY, ids=lambda case: "-".join(map(str, case)))
def toy(request, toys):
    facts = toys[request.param]
    assert "crash" not in facts["found"], facts["found"]["crash"]
    return request.param, facts


def test_reloaded_equals_masked(toy):
    (variant, space_name, _), facts = toy
    # Hugging Face's RMSNorm computes in float32, so one over fewer dims agrees to float32 rounding only.
    tolerance = 2e-6 if space_name == "residual" or (variant, space_name) in ROUNDED else 1e-10
    found = facts["found"]
    assert found["dtype"] == "torch.float64"
    assert found["difference"] < tolerance
    assert found.get("eager", 0) < 1e-5  # in float32
    assert found["parameters"] == facts["parameters"]
    assert found["warnings"] == []


@pytest.mark.parametrize("case", FULL, ids=lambda case: "-".join(map(str, case)))
def test_every_use_of_a_model_works(toys, case):
    variant, facts = case[0], toys[case]
    assert {use: facts["found"].get(use) for use in USES} == dict.fromkeys(USES, True)
    if variant != "qwen2":  # Hugging Face gives every qwen2 a byte-level tokenizer, which the toy one is not
        assert facts["found"]["tokenizer"] == tiny_tokenizer()("the cat")["input_ids"]
    assert facts["found"]["generation_config"] == 2


def is_stock(variant, space_name, uniform):
    """One width for all; 31 residual dims are nothing for LLaMA's class, whose biases no other class hosts."""
    if space_name == "depth":
        return True
    return (space_name in ("width", "experts") and uniform and variant not in NO_NARROW_HEADS) or (
        space_name == "residual" and variant not in NO_NARROW_STREAM and (uniform or variant != "llama_mha_biased")
    )


def test_loader_says_what_it_takes(toy):
    case, facts = toy
    loader, found = facts["loader"], facts["found"]
    assert loader.class_name == found["class"]
    assert loader.needs_remote_code == (not is_stock(*case))
    assert loader.needs_remote_code == (facts["folder"] / "modeling_pruned.py").exists()
    if loader.needs_remote_code:
        assert "mismatch" in found["refusal"]
    else:
        assert found["module"].startswith("transformers.models.")
    variant, space_name, uniform = case
    why = "with one file of remote code" if loader.needs_remote_code else f"as {loader.host_model_type}"
    cell("hf", variant, space_name, "uniform" if uniform else "ragged", "run", why)


def test_rope_survives_under_both_names(toy):
    (variant, _, _), facts = toy
    config = json.loads((facts["folder"] / "config.json").read_text())
    rope = config["rope_parameters"]
    assert config["rope_theta"] == rope.get("full_attention", rope)["rope_theta"]
    assert ("rope_scaling" in config) == (variant == "llama3")
    assert facts["found"]["rope"] == tiny_model(variant).config.rope_parameters


def test_tied_embeddings_are_stored_once(toys):
    for space_name in SPACES:
        folder = toys["llama3", space_name, False]["folder"]
        assert "lm_head.weight" not in load_file(folder / "model.safetensors")


def test_routed_models_reload_and_work_like_others(tmp_path):
    jobs, parameters = [], {}
    for variant in DENSE:
        if variant in UNGATED:
            continue
        model, folder = tiny_model(variant), tmp_path / variant
        architecture = families.describe(model)
        space = spaces.build("head_dim", architecture, model)
        plan = routed_plan(space, architecture)
        facts = export_plan(model, tiny_tokenizer(), probe_ids(), architecture, space, plan, folder)
        parameters[str(folder)] = facts["parameters"]
        jobs.append({"folder": str(folder), "ragged": True, "full": True})
    for folder, found in run_child(jobs, tmp_path).items():
        assert "crash" not in found, found["crash"]
        assert found["difference"] < (1e-5 if (Path(folder).name, "head_dim") in ROUNDED else 1e-10), folder
        assert found["parameters"] == parameters[folder]
        assert found["warnings"] == []
        assert {use: found.get(use) for use in USES} == dict.fromkeys(USES, True), folder


@pytest.fixture(scope="module")
def rotated(tmp_path_factory):
    """Models with a basis for every norm, exported, with what the child found, by variant."""
    scratch, found = tmp_path_factory.mktemp("rotated"), {}
    for variant in VARIANTS:
        model = tiny_model(variant)
        architecture = families.describe(model)
        if not architecture.is_rotatable:
            continue
        space = spaces.build("residual", architecture, model)
        torch.manual_seed(0)
        bases = [torch.linalg.qr(torch.randn(32, 32, dtype=torch.float64))[0] for _ in architecture.sites()]
        rotations = [Rotate(site.norm, basis) for site, basis in zip(architecture.sites(), bases, strict=True)]
        plan = Plan((*rotations, *Plan.from_masks(random_masks(space), space).edits), space.fingerprint)
        small = compress(model, architecture, space, plan)
        folder = scratch / variant
        loader = export.write(small, tiny_tokenizer(), folder)
        with torch.no_grad():
            expected = small(input_ids=probe_ids(), use_cache=False).logits
        save_file({"input_ids": probe_ids(), "logits": expected}, folder.with_suffix(".expected"))
        found[variant] = {"loader": loader, "parameters": space.count(plan.widths(space)) + plan.added(space)}
    jobs = [{"folder": str(scratch / variant), "ragged": True, "full": True} for variant in found]
    heard = run_child(jobs, scratch)
    return {variant: facts | {"found": heard[str(scratch / variant)]} for variant, facts in found.items()}


def test_rotated_models_reload_and_work(rotated):
    for variant, facts in rotated.items():
        found = facts["found"]
        assert "crash" not in found, f"{variant}: {found['crash']}"
        assert facts["loader"].needs_remote_code
        assert found["difference"] < 1e-10, variant
        assert found["parameters"] == facts["parameters"], variant
        assert {use: found.get(use) for use in USES} == dict.fromkeys(USES, True), variant
        assert found["warnings"] == [], variant


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """The exports of real checkpoints in float32, with what the child found."""
    if not MODELS.is_dir():
        pytest.skip(f"no real checkpoints at {MODELS}; set TUNEPRUNE_MODELS to test them")
    scratch = tmp_path_factory.mktemp("checkpoints")
    jobs = []
    for checkpoint, space_name, uniform in REAL:
        model = AutoModelForCausalLM.from_pretrained(MODELS / checkpoint).eval()
        tokenizer = AutoTokenizer.from_pretrained(MODELS / checkpoint)
        ids = torch.tensor(tokenizer("Once upon a time there was a girl who had a red ball." * 2)["input_ids"])[None]
        folder = scratch / f"{checkpoint}-{space_name}-{uniform}"
        facts = export_pruned(model, tokenizer, ids, space_name, uniform, folder)
        jobs.append({"folder": str(folder), "ragged": facts["loader"].needs_remote_code, "full": False})
    return run_child(jobs, scratch), scratch


@pytest.mark.parametrize("case", REAL, ids=lambda case: "-".join(map(str, case)))
def test_real_checkpoints_reload_within_float32_rounding(checkpoints, case):
    found, scratch = checkpoints
    facts = found[str(scratch / "-".join(map(str, case)))]
    assert "crash" not in facts, facts["crash"]
    assert facts["difference"] <= 1e-5
