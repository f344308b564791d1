"""Layers of unequal widths under the names of OpenELM, the only class of mlx-lm with widths per layer."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from tuneprune.compress.shape import Shape
from tuneprune.export.weights import Weights
from tuneprune.families.base import head_width, rotary_width
from tuneprune.structure.architecture import Block

FAMILIES = ("llama", "mistral", "qwen3", "phi3")
"""Families of the same block: RMSNorms before attention and a SiLU-gated MLP, RoPE over halves of the whole head."""


def objection(shape: Shape) -> str | None:
    """Why the class cannot hold a model, or None."""
    config, widths = shape.config, shape.widths
    rope: Mapping[str, Any] = getattr(config, "rope_parameters", None) or {}
    if config.model_type not in FAMILIES:
        return f"layers of unequal widths need one of {', '.join(FAMILIES)}, not {config.model_type}"
    if shape.oddities or widths["qk_dim"] != widths["v_dim"] or len(widths["qk_dim"]) > 1:
        found = ", ".join(sorted(shape.oddities)) or "head dims of their own"
        return f"layers have {found}, for which mlx-lm has no class"
    if getattr(config, "attention_bias", False) or getattr(config, "mlp_bias", False):
        return "layers of unequal widths with biases have no class"
    if rope.get("rope_type", "default") != "default" or rotary_width(config) < head_width(config):
        return "layers of unequal widths with scaled or partial RoPE have no class"
    if config.hidden_act != "silu":
        return f"layers of unequal widths with {config.hidden_act} have no class"
    return None


def settings(shape: Shape) -> dict[str, Any]:
    """The config.json of the class."""
    config = shape.config
    return {
        "model_type": "openelm",
        "architectures": ["OpenELMForCausalLM"],
        "head_dim": shape.layers[0].qk_dim,
        "num_transformer_layers": len(shape.layers),
        "model_dim": shape.hidden,
        "vocab_size": config.vocab_size,
        "ffn_dim_divisor": 1,
        "num_query_heads": [layer.num_heads for layer in shape.layers],
        "num_kv_heads": [layer.num_kv_heads for layer in shape.layers],
        "ffn_multipliers": [layer.mlp_width / shape.hidden for layer in shape.layers],
        "normalize_qk_projections": shape.architecture.blocks[0].attention.qk_norm is not None,
        "share_input_output_layers": shape.architecture.tied,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_freq_constant": config.rope_parameters["rope_theta"],
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "max_position_embeddings": config.max_position_embeddings,
    }


def tensors(weights: Weights, shape: Shape) -> dict[str, Tensor]:
    """All weights by the names of the class."""
    outer = shape.architecture
    named = {
        "transformer.token_embeddings.weight": weights[f"{outer.embed}.weight"],
        "transformer.norm.weight": weights[f"{outer.final_norm}.weight"],
    }
    if not outer.tied:
        named["lm_head.weight"] = weights[f"{outer.head}.weight"]
    for index, block in enumerate(outer.blocks):
        named |= {f"transformer.layers.{index}.{name}.weight": tensor for name, tensor in _block(weights, block)}
    return named


def _block(weights: Weights, block: Block) -> Iterator[tuple[str, Tensor]]:
    attention, mlp = block.attention, block.mlp
    yield "attn_norm", weights[f"{block.attention_norm}.weight"]
    yield "ffn_norm", weights[f"{block.mlp_norm}.weight"]
    yield "attn.qkv_proj", torch.cat([weights[f"{module}.weight"] for module in attention.inputs])
    yield "attn.out_proj", weights[f"{attention.out}.weight"]
    for name, norm in zip(("attn.q_norm", "attn.k_norm"), attention.qk_norm or (), strict=False):
        yield name, weights[f"{norm}.weight"]
    yield "ffn.proj_1", torch.cat([weights[f"{module}.weight"] for module in mlp.inputs])
    yield "ffn.proj_2", weights[f"{mlp.down}.weight"]
