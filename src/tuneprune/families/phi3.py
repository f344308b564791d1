"""Phi-3 and Phi-4-mini: q, k, v share one linear, gate and up another."""

from typing import Any

from transformers import MistralConfig, PretrainedConfig

from tuneprune.families.base import head_width, hosted, plain_decoder, reshaped, rotary_width
from tuneprune.structure.architecture import Architecture, Attention, Block, Mlp, Projection, StockShape

MODEL_TYPES = ("phi3",)


def describe(config: Any) -> Architecture:  # noqa: ANN401
    """Packed projections: k starts after q, v after k, up after gate."""
    head = head_width(config)
    queries, keys, channels = (
        config.num_attention_heads * head,
        config.num_key_value_heads * head,
        config.intermediate_size,
    )

    def block(index: int) -> Block:
        path = f"model.layers.{index}"
        qkv, gate_up = f"{path}.self_attn.qkv_proj", f"{path}.mlp.gate_up_proj"
        return Block(
            path=path,
            attention=Attention(
                path=f"{path}.self_attn",
                q=Projection(qkv, queries),
                k=Projection(qkv, keys, start=queries),
                v=Projection(qkv, keys, start=queries + keys),
                out=f"{path}.self_attn.o_proj",
                num_heads=config.num_attention_heads,
                num_kv_heads=config.num_key_value_heads,
                head_dim=head,
                rotary_dim=rotary_width(config),
            ),
            feed_forward=Mlp(
                f"{path}.mlp",
                Projection(gate_up, channels),
                Projection(gate_up, channels, start=channels),
                f"{path}.mlp.down_proj",
                channels,
            ),
            attention_norm=f"{path}.input_layernorm",
            mlp_norm=f"{path}.post_attention_layernorm",
        )

    return plain_decoder(config, block)


def uniform(config: Any, shape: StockShape) -> PretrainedConfig | None:  # noqa: ANN401
    """The config of this shape; head size and RoPE stay, epsilon follows the norms' width.

    None for a narrower residual stream under long RoPE: `Phi3Config` takes the number of its factors from the width.
    Transformers' Phi-3 takes a head size of its own, but llama.cpp and mlx-lm divide the hidden size by the head count;
    Mistral's block is the same one over separate projections, and all of them take its head size. It has no dropout
    on what it adds to the stream, and readers know it with plain RoPE over the whole head only.
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
