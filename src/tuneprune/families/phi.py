"""Phi 1, 1.5 and 2: attention and a plain MLP in parallel behind one LayerNorm, RoPE over a part of every head."""

from typing import Any

from transformers import PretrainedConfig

from tuneprune.families.base import plain_attention, reshaped
from tuneprune.structure.architecture import Architecture, Block, Mlp, NormStyle, Projection, StockShape

MODEL_TYPES = ("phi",)


def describe(config: Any) -> Architecture:  # noqa: ANN401
    """Attention ends in `dense`, the MLP lies between `fc1` and `fc2`, both read one norm; some have q/k LayerNorms."""

    def block(index: int) -> Block:
        path = f"model.layers.{index}"
        attention, mlp = f"{path}.self_attn", f"{path}.mlp"
        channels = Projection(f"{mlp}.fc1", config.intermediate_size)
        norms = (f"{attention}.q_layernorm", f"{attention}.k_layernorm") if config.qk_layernorm else None
        return Block(
            path=path,
            attention=plain_attention(config, attention, out="dense", qk_norm=norms),
            feed_forward=Mlp(mlp, None, channels, f"{mlp}.fc2", config.intermediate_size),
            attention_norm=f"{path}.input_layernorm",
            mlp_norm=f"{path}.input_layernorm",
            parallel=True,
        )

    return Architecture(
        family=config.model_type,
        hidden=config.hidden_size,
        embed="model.embed_tokens",
        blocks=tuple(block(index) for index in range(config.num_hidden_layers)),
        final_norm="model.final_layernorm",
        head="lm_head",
        tied=config.tie_word_embeddings,
        norms=NormStyle(is_centred=True),
    )


def uniform(config: Any, shape: StockShape) -> PretrainedConfig | None:  # noqa: ANN401
    """The config of this shape; None where q/k norms would follow the head count instead of the head size."""
    if config.qk_layernorm and shape.hidden_size // shape.num_heads != config.hidden_size // config.num_attention_heads:
        return None
    return reshaped(config, shape)
