"""LLaMA 1 to 3.x and the families with the same block.

Mistral, Qwen2 and Seed-OSS (qkv bias), Qwen3 (q/k norm), Granite (multipliers), SmolLM3 (some layers without RoPE).
"""

from dataclasses import replace

from transformers import MistralConfig, PretrainedConfig, SeedOssConfig

from tuneprune.families.base import QK_NORM, HfConfig, head_width, hosted, plain_block, plain_decoder, reshaped
from tuneprune.structure.architecture import Architecture, StockShape

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3", "granite", "smollm3", "seed_oss")


def describe(config: HfConfig) -> Architecture:
    """Seven separate projections a block. Biases need no mention: groups include those that the weights have."""
    qk_norm = QK_NORM if config.model_type == "qwen3" else None
    decoder = plain_decoder(config, lambda path: plain_block(config, path, qk_norm=qk_norm))
    has_rope = getattr(config, "no_rope_layers", None) or [1] * config.num_hidden_layers  # the name says the opposite
    blocks = (
        block if has_rope[index] else replace(block, attention=replace(block.attention, rotary_dim=0))
        for index, block in enumerate(decoder.blocks)
    )
    return replace(decoder, blocks=tuple(blocks))


def uniform(config: HfConfig, shape: StockShape) -> PretrainedConfig | None:
    """The config of this shape; head size and RoPE stay, epsilon follows the norms' width.

    `LlamaConfig` refuses a hidden size that is not divisible by the head count. Mistral's block is the same and has no
    such rule, so such a LLaMA becomes a Mistral; that has no biases, hence None if the LLaMA has some. Transformers'
    Qwen2 takes any head size, but vLLM, llama.cpp and mlx-lm divide the hidden size by the head count and cannot load
    such a model; Seed-OSS has the same block, and all of them read its head size.
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
