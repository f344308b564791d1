"""Gemma 2 and Gemma 3 (text): norms before and after attention and MLP, sliding windows in some layers."""

from dataclasses import replace

from transformers import PretrainedConfig

from tuneprune.families.base import QK_NORM, HfConfig, plain_block, plain_decoder, reshaped
from tuneprune.structure.architecture import Architecture, Block, NormStyle, StockShape

MODEL_TYPES = ("gemma2", "gemma3_text")


def describe(config: HfConfig) -> Architecture:
    """LLaMA's projections between norms whose stored weight is an offset from one; Gemma 3 also norms q and k."""

    def block(path: str) -> Block:
        return replace(
            plain_block(config, path, qk_norm=QK_NORM if config.model_type == "gemma3_text" else None),
            mlp_norm=f"{path}.pre_feedforward_layernorm",
            attention_post_norm=f"{path}.post_attention_layernorm",
            mlp_post_norm=f"{path}.post_feedforward_layernorm",
        )

    return plain_decoder(config, block, NormStyle(offset=1.0))


def uniform(config: PretrainedConfig, shape: StockShape) -> PretrainedConfig | None:
    """The config of this shape; None if it breaks a rule of the stock class.

    The hidden size has to be divisible by the head count. It must also stay as it is, because embeddings are scaled by
    its root.
    """
    if shape.hidden_size != config.hidden_size or shape.hidden_size % shape.num_heads:
        return None
    return reshaped(config, shape)
