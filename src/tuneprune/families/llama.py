"""LLaMA 1 to 3.x and the families with the same block.

Mistral, Qwen2 and Seed-OSS (qkv bias), Qwen3 (q/k norm), Granite (multipliers), SmolLM3 (some layers without RoPE).
"""

from typing import Any

from transformers import MistralConfig, PretrainedConfig, SeedOssConfig

from tuneprune.families.base import (
    gated_mlp,
    head_width,
    hosted,
    plain_attention,
    plain_decoder,
    reshaped,
    rotary_width,
)
from tuneprune.structure.architecture import Architecture, Block, StockShape

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3", "granite", "smollm3", "seed_oss")


def describe(config: Any) -> Architecture:  # noqa: ANN401
    """Seven separate projections a block. Biases need no word here: groups take those the weights have."""
    has_rope = getattr(config, "no_rope_layers", None) or [1] * config.num_hidden_layers  # the name says the opposite

    def block(index: int) -> Block:
        path = f"model.layers.{index}"
        attention, mlp = f"{path}.self_attn", f"{path}.mlp"
        return Block(
            path=path,
            attention=plain_attention(
                config,
                attention,
                rotary_dim=rotary_width(config) if has_rope[index] else 0,
                qk_norm=(f"{attention}.q_norm", f"{attention}.k_norm") if config.model_type == "qwen3" else None,
            ),
            feed_forward=gated_mlp(config, mlp),
            attention_norm=f"{path}.input_layernorm",
            mlp_norm=f"{path}.post_attention_layernorm",
        )

    return plain_decoder(config, block)


def uniform(config: Any, shape: StockShape) -> PretrainedConfig | None:  # noqa: ANN401
    """The config of this shape; head size and RoPE stay, epsilon follows the norms' width.

    `LlamaConfig` refuses a hidden size that the head count does not divide, but Mistral's block is the same
    one and has no such rule, so such a LLaMA is re-hosted there (it has no biases, hence None where the LLaMA
    has some). Transformers' Qwen2 takes a head size of its own, but vLLM, llama.cpp and mlx-lm divide the hidden size
    by the head count and cannot load it; Seed-OSS's block is the same one, and all of them take its head size.
    """
    reshaped_config = reshaped(config, shape)
    if config.model_type == "llama" and shape.hidden_size % shape.num_heads:
        if config.attention_bias or config.mlp_bias:
            return None
        return hosted(reshaped_config, MistralConfig, sliding_window=None)
    is_derivable = shape.num_heads * head_width(config) == shape.hidden_size
    if config.model_type == "qwen2" and not is_derivable and set(config.layer_types) == {"full_attention"}:
        return hosted(reshaped_config, SeedOssConfig, attention_bias=True, residual_dropout=0.0)
    return reshaped_config
