"""StarCoder2: LayerNorms, biases everywhere, a plain MLP."""

from typing import Any

from transformers import PretrainedConfig

from tuneprune.families.base import plain_attention, plain_decoder, reshaped
from tuneprune.structure.architecture import Architecture, Block, Mlp, NormStyle, Projection, StockShape

MODEL_TYPES = ("starcoder2",)


def describe(config: Any) -> Architecture:  # noqa: ANN401
    """LLaMA's attention; the MLP is one activation between `c_fc` and `c_proj`."""

    def block(index: int) -> Block:
        path = f"model.layers.{index}"
        mlp = f"{path}.mlp"
        channels = Projection(f"{mlp}.c_fc", config.intermediate_size)
        return Block(
            path=path,
            attention=plain_attention(config, f"{path}.self_attn"),
            feed_forward=Mlp(mlp, None, channels, f"{mlp}.c_proj", config.intermediate_size),
            attention_norm=f"{path}.input_layernorm",
            mlp_norm=f"{path}.post_attention_layernorm",
        )

    return plain_decoder(config, block, NormStyle(is_centred=True))


def uniform(config: PretrainedConfig, shape: StockShape) -> PretrainedConfig | None:
    """The config of this shape."""
    return reshaped(config, shape)
