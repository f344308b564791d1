"""GGUF files of tiny pruned models, and what is asked of them."""

from pathlib import Path

import torch
from helpers.tiny import layers_for, random_masks, tiny_model
from helpers.toy_tokenizer import byte_tokenizer

from tuneprune import export, families
from tuneprune.compress import compress
from tuneprune.export import targets
from tuneprune.structure import spaces
from tuneprune.structure.plan import Plan

CHANGES = {
    "mistral": {"sliding_window": None},
    "starcoder2": {"sliding_window": None},
    "smollm3": {"num_hidden_layers": 4, "no_rope_layers": [1, 1, 1, 0], "use_sliding_window": False},
    "qwen3_moe": {"norm_topk_prob": True},
}
"""What a file needs that tiny models have otherwise: whole contexts, and what graphs have built in."""
TOLERANCE = 1e-3


def save(folder: Path, family: str, space_name: str, layout: str = "uniform", *, tokenizer=None, edits=(), **changes):
    """Write a pruned tiny model."""
    changes = {"vocab_size": 300} | layers_for(space_name) | CHANGES.get(family, {}) | changes
    model = tiny_model(family, dtype=torch.float32, **changes)
    architecture = families.describe(model)
    space = spaces.build(space_name, architecture, model)
    plan = Plan.from_masks(random_masks(space, uniform=layout == "uniform"), space)
    small = compress(model, architecture, space, Plan((*plan.edits, *edits), plan.space))
    export.write(small, tokenizer or byte_tokenizer(), folder)
    return folder


def converted(source: Path, out: Path, name: str = "gguf:type=f32") -> dict:
    return export.convert(source, targets.build(name), out, export.take_reference(source))


def check_run(found: dict, tolerance: float = TOLERANCE) -> None:
    proof = found["proof"]
    assert proof["status"] == "run"
    assert proof["logits"]["max_rel_diff"] <= tolerance
    assert proof["greedy_equal"]
    assert proof["tokens"]["differ"] == []
