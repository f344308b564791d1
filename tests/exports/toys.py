"""Exported folders of tiny pruned models, one per family, space and layout."""

import os
from pathlib import Path

import pytest
import torch
from helpers.tiny import layers_for, random_masks, routed_plan, tiny_model
from helpers.tiny_runs import letter_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from tuneprune import export, families
from tuneprune.compress import compress
from tuneprune.structure import spaces
from tuneprune.structure.edits import Bias, Rotate
from tuneprune.structure.plan import Plan

MAIN = ("llama", "mistral", "qwen2", "qwen3", "phi3")
"""The families that every target is asked for."""
LAYOUTS = ("uniform", "ragged")
MODELS = Path(os.environ.get("TUNEPRUNE_MODELS", Path(__file__).parents[3] / "shared" / "models"))


def toy(folder: Path, variant: str, space_name: str, layout: str, *, adds: str = "", step: int = 1, **sizes) -> Path:
    """Write a pruned tiny model to `folder`.

    Args:
        adds: `biases`, `routers` or `skip matrices`, as FLAP, ToMoE and SliceGPT add them.
        step: channels of an MLP are kept in multiples of it.
        sizes: of the dense model, or its `seed`.
    """
    model = tiny_model(variant, dtype=torch.float32, **layers_for(space_name) | sizes)
    architecture = families.describe(model)
    space = spaces.build(space_name, architecture, model)
    masks = random_masks(space, uniform=layout == "uniform")
    for group in space.groups:
        if group.kind == "mlp_channel" and step > 1:
            kept = max(step, int(masks[group.name].sum()) // step * step)
            masks[group.name] = (torch.arange(group.size) < kept).float()
    plan = Plan.from_masks(masks, space)
    if adds == "routers":
        plan = routed_plan(space, architecture)
    elif adds:
        plan = Plan((*plan.edits, *_additions(adds, architecture, space)), plan.space)
    small = compress(model, architecture, space, plan)
    assert hasattr(small.config, "pruned") or not adds
    export.write(small, letter_tokenizer(), folder)
    return folder


def sweep(cases: list[tuple]) -> list:
    """All cases where the matrix is made, which takes long, else one that says that they were left out."""
    if "TUNEPRUNE_EXPORT_MATRIX" in os.environ:
        return cases
    reason = f"{len(cases)} further cases run where TUNEPRUNE_EXPORT_MATRIX names a file for the matrix"
    return [pytest.param(*cases[0], marks=pytest.mark.skip(reason=reason))]


def pretrained(folder: Path, name: str, layout: str) -> Path:
    """Write one of the small pretrained models of TUNEPRUNE_MODELS, pruned in `width`, to `folder`."""
    source = MODELS / name
    if not source.is_dir():
        pytest.skip(f"no pretrained models at {MODELS}; set TUNEPRUNE_MODELS to test them")
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    architecture = families.describe(model)
    space = spaces.build("width", architecture, model)
    plan = Plan.from_masks(random_masks(space, uniform=layout == "uniform"), space)
    export.write(compress(model, architecture, space, plan), AutoTokenizer.from_pretrained(source), folder)
    return folder


def _additions(adds, architecture, space):
    draw = torch.Generator().manual_seed(3)
    if adds == "biases":
        modules = [block.mlp.down for block in architecture.blocks]
        return [Bias(m, torch.randn(space.shapes[f"{m}.weight"][0], generator=draw)) for m in modules]
    shape = (architecture.hidden, architecture.hidden)
    random = [torch.randn(shape, generator=draw, dtype=torch.float64) for _ in architecture.sites()]
    bases = [torch.linalg.qr(matrix)[0] for matrix in random]
    return [Rotate(site.norm, basis) for site, basis in zip(architecture.sites(), bases, strict=True)]
