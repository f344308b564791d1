"""OLMo 2: norms after attention and MLP instead of before, and over all heads of q and of k together."""

from typing import Any

from transformers import PretrainedConfig

from tuneprune.families.base import gated_mlp, plain_attention, plain_decoder, reshaped
from tuneprune.structure.architecture import Architecture, Block, StockShape

MODEL_TYPES = ("olmo2",)


def describe(config: Any) -> Architecture:  # noqa: ANN401
    """LLaMA's projections, which read the residual stream itself."""

    def block(index: int) -> Block:
        path = f"model.layers.{index}"
        attention, mlp = f"{path}.self_attn", f"{path}.mlp"
        return Block(
            path=path,
            attention=plain_attention(
                config, attention, qk_norm=(f"{attention}.q_norm", f"{attention}.k_norm"), qk_norm_joins_heads=True
            ),
            feed_forward=gated_mlp(config, mlp),
            attention_norm=None,
            mlp_norm=None,
            attention_post_norm=f"{path}.post_attention_layernorm",
            mlp_post_norm=f"{path}.post_feedforward_layernorm",
        )

    return plain_decoder(config, block)


def uniform(config: PretrainedConfig, shape: StockShape) -> PretrainedConfig | None:
    """The config of this shape; the compressor scales q and k for their norms, whose epsilon the config shares."""
    return reshaped(config, shape)
