"""Gemma 2 and Gemma 3 (text): norms before and after attention and MLP, sliding windows in some layers."""

from typing import Any

from transformers import PretrainedConfig

from tuneprune.families.base import gated_mlp, plain_attention, plain_decoder, reshaped
from tuneprune.structure.architecture import Architecture, Block, NormStyle, StockShape

MODEL_TYPES = ("gemma2", "gemma3_text")


def describe(config: Any) -> Architecture:  # noqa: ANN401
    """LLaMA's projections between norms whose stored weight is an offset from one; Gemma 3 also norms q and k."""

    def block(index: int) -> Block:
        path = f"model.layers.{index}"
        attention, mlp = f"{path}.self_attn", f"{path}.mlp"
        has_qk_norm = config.model_type == "gemma3_text"
        return Block(
            path=path,
            attention=plain_attention(
                config, attention, qk_norm=(f"{attention}.q_norm", f"{attention}.k_norm") if has_qk_norm else None
            ),
            feed_forward=gated_mlp(config, mlp),
            attention_norm=f"{path}.input_layernorm",
            mlp_norm=f"{path}.pre_feedforward_layernorm",
            attention_post_norm=f"{path}.post_attention_layernorm",
            mlp_post_norm=f"{path}.post_feedforward_layernorm",
        )

    return plain_decoder(config, block, NormStyle(offset=1.0))


def uniform(config: PretrainedConfig, shape: StockShape) -> PretrainedConfig | None:
    """The config of this shape; None where it breaks a rule of the stock class.

    The config refuses a hidden size that the head count does not divide, and embeddings are scaled by the root of the
    hidden size, so that must stay.
    """
    if shape.hidden_size != config.hidden_size or shape.hidden_size % shape.num_heads:
        return None
    return reshaped(config, shape)
