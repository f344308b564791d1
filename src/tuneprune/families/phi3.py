"""Phi-3 and Phi-4-mini: q, k, v share one linear, gate and up another."""

from dataclasses import replace

from transformers import MistralConfig, PretrainedConfig

from tuneprune.families.base import HfConfig, head_width, hosted, plain_block, plain_decoder, reshaped, rotary_width
from tuneprune.structure.architecture import Architecture, Block, Projection, StockShape

MODEL_TYPES = ("phi3",)


def describe(config: HfConfig) -> Architecture:
    """Packed projections: k starts after q, v after k, up after gate."""

    def block(path: str) -> Block:
        plain = plain_block(config, path)
        attention, mlp = plain.attention, plain.mlp
        qkv, gate_up = f"{attention.path}.qkv_proj", f"{mlp.path}.gate_up_proj"
        queries, keys = attention.q.rows, attention.k.rows
        return replace(
            plain,
            attention=replace(
                attention,
                q=Projection(qkv, queries),
                k=Projection(qkv, keys, start=queries),
                v=Projection(qkv, keys, start=queries + keys),
            ),
            feed_forward=replace(
                mlp, gate=Projection(gate_up, mlp.width), up=Projection(gate_up, mlp.width, start=mlp.width)
            ),
        )

    return plain_decoder(config, block)


def uniform(config: HfConfig, shape: StockShape) -> PretrainedConfig | None:
    """The config of this shape; head size and RoPE stay, epsilon follows the norms' width.

    None for a narrower residual stream under long RoPE: `Phi3Config` derives the number of RoPE factors from the width.
    Transformers' Phi-3 takes any head size, but llama.cpp and mlx-lm divide the hidden size by the head count. Mistral
    has the same block with separate projections, and all of them read its head size. It has no dropout on what it adds
    to the stream, and other programs support only plain RoPE over the whole head for it.
    """
    rope = config.rope_parameters or {}
    if shape.hidden_size < config.hidden_size and rope.get("short_factor") is not None:
        return None
    head = head_width(config)
    is_derivable = shape.num_heads * head == shape.hidden_size
    is_plain = rope.get("rope_type", "default") == "default" and rotary_width(config) == head and not config.resid_pdrop
    if is_plain and not is_derivable:
        return hosted(reshaped(config, shape), MistralConfig)
    return reshaped(config, shape)
