"""Phi 1, 1.5 and 2: attention and an ungated MLP in parallel after one LayerNorm, RoPE over a part of every head."""

from dataclasses import replace

from transformers import PretrainedConfig

from tuneprune.families.base import HfConfig, plain_attention, plain_block, plain_decoder, reshaped, ungated_mlp
from tuneprune.structure.architecture import Architecture, Block, NormStyle, StockShape

MODEL_TYPES = ("phi",)


def describe(config: HfConfig) -> Architecture:
    """Attention ends in `dense`, the MLP is `fc1` and `fc2`, and one norm serves both; some have q/k LayerNorms."""
    qk_norm = ("q_layernorm", "k_layernorm") if config.qk_layernorm else None

    def block(path: str) -> Block:
        return replace(
            plain_block(config, path),
            attention=plain_attention(config, f"{path}.self_attn", out="dense", qk_norm=qk_norm),
            feed_forward=ungated_mlp(config, f"{path}.mlp", "fc1", "fc2"),
            mlp_norm=f"{path}.input_layernorm",
            parallel=True,
        )

    return plain_decoder(config, block, NormStyle(is_centred=True), final_norm="model.final_layernorm")


def uniform(config: HfConfig, shape: StockShape) -> PretrainedConfig | None:
    """The config of this shape; None if q/k norms would follow the head count instead of the head size."""
    if config.qk_layernorm and shape.hidden_size // shape.num_heads != config.hidden_size // config.num_attention_heads:
        return None
    return reshaped(config, shape)
