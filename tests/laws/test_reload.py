"""Law 6: export -> reload == compressed, for every family and space, in a process that has no tuneprune."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from exports.matrix import cell
from helpers.precision import EXACT, FLOAT32_LOGITS, FullPrecision
from helpers.tiny import (
    CASES,
    DENSE,
    NO_NARROW_HEADS,
    NO_NARROW_STREAM,
    NO_ODD_STREAM,
    SPACES,
    UNGATED,
    VARIANTS,
    probe_ids,
    random_masks,
    routed_plan,
    tiny_model,
)
from helpers.toy_tokenizer import tiny_tokenizer
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, logging

from tuneprune import export, families
from tuneprune.compress import compress
from tuneprune.structure import spaces
from tuneprune.structure.edits import Rotate
from tuneprune.structure.masks import simulated
from tuneprune.structure.plan import Plan

logging.disable_progress_bar()
ROOT = Path(__file__).parents[2]
MODELS = Path(os.environ.get("TUNEPRUNE_MODELS", ROOT.parent / "shared" / "models"))
USED = [("llama", "width", True), ("phi3", "head_dim", False), ("gemma2", "disp", False), ("mixtral", "experts", False)]
"""Cases of which every use is tried in the quick suite."""
STOCK = ("width", "experts", "residual")
"""Spaces in which equal widths make another class than unequal ones, of most families."""
TOY = [(*case, uniform) for case in CASES for uniform in (False, True) if not uniform or case[1] in STOCK]
MORE = [(*case, uniform) for case in CASES for uniform in (False, True) if (*case, uniform) not in USED]
REAL = [(name, "residual", False) for name in ("stories260K", "babyllama-char361-1M")]
MORE_REAL = [
    (name, *case)
    for name in ("stories260K", "babyllama-char361-1M")
    for case in (("width", False), ("width", True), ("head_dim", False), ("disp", False), ("depth", False))
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
    """Prune at random masks, export, and save the logits of the masked model next to the folder."""
    architecture = families.describe(model)
    space = spaces.build(space_name, architecture, model)
    plan = Plan.from_masks(random_masks(space, uniform=uniform), space)
    return export_plan(model, tokenizer, ids, architecture, space, plan, folder)


def export_plan(model, tokenizer, ids, architecture, space, plan, folder):
    """Prune by a plan, export, and save the logits of the simulation on the dense model next to the folder."""
    with FullPrecision(), torch.no_grad(), simulated(model, space, plan):
        expected = model(input_ids=ids, use_cache=False).logits
    parameters = space.count(plan.widths(space)) + plan.added(space)
    return exported(compress(model, architecture, space, plan), tokenizer, ids, expected, folder, parameters)


def exported(small, tokenizer, ids, expected, folder, parameters):
    """Export a model, with the logits expected of it next to the folder."""
    loader = export.write(small, tokenizer, folder)
    save_file({"input_ids": ids, "logits": expected}, folder.with_suffix(".expected"))
    return {"folder": folder, "parameters": parameters, "loader": loader}


def job(facts, *, full):
    """A job for the child process; with `full` it tries every use."""
    return {"folder": str(facts["folder"]), "ragged": facts["loader"].needs_remote_code, "full": full}


def run_child(jobs, scratch):
    """The results of the process without tuneprune, by folder."""
    (scratch / "jobs.json").write_text(json.dumps(jobs))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(scratch / "modules")}
    child = Path(__file__).with_name("reload_child.py")
    command = [sys.executable, "-P", str(child), str(scratch / "jobs.json"), str(scratch / "results.json")]
    subprocess.run(command, env=environment, check=True, cwd=scratch)
    return json.loads((scratch / "results.json").read_text())


def examined(cases, scratch, used):
    """Toy exports with what was written and what the child found, by case; of the `used` ones every use."""
    written = {}
    for case in cases:
        variant, space_name, uniform = case
        written[case] = export_pruned(
            tiny_model(variant), tiny_tokenizer(), probe_ids(), space_name, uniform, scratch / name_of(case)
        )
    found = run_child([job(facts, full=case in used) for case, facts in written.items()], scratch)
    return {case: facts | {"found": found[str(facts["folder"])]} for case, facts in written.items()}


def name_of(case):
    return "-".join(map(str, case))


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    return examined(TOY, tmp_path_factory.mktemp("toys"), USED)


@pytest.fixture(scope="module")
def more_toys(tmp_path_factory):
    return examined(MORE, tmp_path_factory.mktemp("more"), MORE)


@pytest.mark.parametrize("case", TOY, ids=name_of)
def test_reloaded_equals_masked_and_is_what_the_loader_says(toys, case):
    check_toy(case, toys[case])


@pytest.mark.slow
@pytest.mark.parametrize("case", MORE, ids=name_of)
def test_every_other_toy_reloads_and_works(more_toys, case):
    check_toy(case, more_toys[case])
    check_uses(more_toys[case]["found"], case[0])


def check_toy(case, facts):
    check_reloaded(facts["found"], facts["parameters"])
    check_loader(case, facts)
    check_rope(case[0], facts)


def check_reloaded(found, parameters):
    assert "crash" not in found, found["crash"]
    assert found["dtype"] == "torch.float64"
    assert found["difference"] < EXACT["rtol"]
    assert found.get("eager", 0) < FLOAT32_LOGITS  # in float32
    assert found["parameters"] == parameters
    assert found["warnings"] == []


def check_uses(found, variant):
    assert {use: found.get(use) for use in USES} == dict.fromkeys(USES, True)
    if variant != "qwen2":  # Hugging Face gives every qwen2 a byte-level tokenizer, which the toy one is not
        assert found["tokenizer"] == tiny_tokenizer()("the cat")["input_ids"]
    assert found["generation_config"] == 2


@pytest.mark.parametrize("case", USED, ids=name_of)
def test_every_use_of_a_model_works(toys, case):
    check_uses(toys[case]["found"], case[0])


def is_stock(variant, space_name, uniform):
    """One width for all; 31 residual dims do not fit the class of LLaMA, and no other class has its biases."""
    if space_name == "depth":
        return True
    return (space_name in ("width", "experts") and uniform and variant not in NO_NARROW_HEADS) or (
        space_name == "residual" and variant not in NO_NARROW_STREAM and (uniform or variant not in NO_ODD_STREAM)
    )


def check_loader(case, facts):
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


def check_rope(variant, facts):
    """The RoPE base is written under both names."""
    config = json.loads((facts["folder"] / "config.json").read_text())
    rope = config["rope_parameters"]
    assert config["rope_theta"] == rope.get("full_attention", rope)["rope_theta"]
    assert ("rope_scaling" in config) == (variant == "llama3")
    assert facts["found"]["rope"] == tiny_model(variant).config.rope_parameters


def test_tied_embeddings_are_stored_once(toys):
    for space_name in SPACES:
        folder = toys["llama3", space_name, False]["folder"]
        assert "lm_head.weight" not in load_file(folder / "model.safetensors")


QUICK = ("llama", "phi3")
ROUTED = [variant for variant in DENSE if variant not in UNGATED]
ROTATED = [variant for variant in VARIANTS if families.describe(tiny_model(variant)).is_rotatable]


def quick_and_slow(variants):
    """Two tests: one process for two families, and a slow one for all others."""
    others = tuple(variant for variant in variants if variant not in QUICK)
    return pytest.mark.parametrize("variants", [QUICK, pytest.param(others, marks=pytest.mark.slow)], ids="-".join)


@quick_and_slow(ROUTED)
def test_routed_models_reload_and_work_like_others(tmp_path, variants):
    written = {}
    for variant in variants:
        model = tiny_model(variant)
        architecture = families.describe(model)
        space = spaces.build("head_dim", architecture, model)
        plan = routed_plan(space, architecture)
        written[variant] = export_plan(
            model, tiny_tokenizer(), probe_ids(), architecture, space, plan, tmp_path / variant
        )
    check_uses_of_all(written, tmp_path)


@quick_and_slow(ROTATED)
def test_rotated_models_reload_and_work(tmp_path, variants):
    written = {}
    for variant in variants:
        model = tiny_model(variant)
        architecture = families.describe(model)
        space = spaces.build("residual", architecture, model)
        torch.manual_seed(0)
        bases = [torch.linalg.qr(torch.randn(32, 32, dtype=torch.float64))[0] for _ in architecture.sites()]
        rotations = [Rotate(site.norm, basis) for site, basis in zip(architecture.sites(), bases, strict=True)]
        plan = Plan((*rotations, *Plan.from_masks(random_masks(space), space).edits), space.fingerprint)
        small = compress(model, architecture, space, plan)
        with FullPrecision(), torch.no_grad():
            expected = small(input_ids=probe_ids(), use_cache=False).logits
        parameters = space.count(plan.widths(space)) + plan.added(space)
        written[variant] = exported(small, tiny_tokenizer(), probe_ids(), expected, tmp_path / variant, parameters)
    check_uses_of_all(written, tmp_path)


def check_uses_of_all(written, scratch):
    """Folders by variant, each with code of its own."""
    assert all(facts["loader"].needs_remote_code for facts in written.values())
    found = run_child([job(facts, full=True) for facts in written.values()], scratch)
    for variant, facts in written.items():
        check_reloaded(found[str(facts["folder"])], facts["parameters"])
        check_uses(found[str(facts["folder"])], variant)


@pytest.mark.parametrize("cases", [REAL, pytest.param(MORE_REAL, marks=pytest.mark.slow)], ids=["some", "others"])
def test_real_checkpoints_reload_within_float32_rounding(tmp_path, cases):
    if not MODELS.is_dir():
        pytest.skip(f"no real checkpoints at {MODELS}; set TUNEPRUNE_MODELS to test them")
    jobs = []
    for case in cases:
        checkpoint, space_name, uniform = case
        model = AutoModelForCausalLM.from_pretrained(MODELS / checkpoint).eval()
        tokenizer = AutoTokenizer.from_pretrained(MODELS / checkpoint)
        ids = torch.tensor(tokenizer("Once upon a time there was a girl who had a red ball." * 2)["input_ids"])[None]
        facts = export_pruned(model, tokenizer, ids, space_name, uniform, tmp_path / name_of(case))
        jobs.append(job(facts, full=False))
    for folder, facts in run_child(jobs, tmp_path).items():
        assert "crash" not in facts, facts["crash"]
        assert facts["difference"] <= FLOAT32_LOGITS, folder
