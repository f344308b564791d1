"""OLMo 2: norms after attention and MLP instead of before, and over all heads of q and of k together."""

from typing import Any

from transformers import PretrainedConfig

from tuneprune.families import plain_attention, reshaped
from tuneprune.structure.architecture import Architecture, Block, Mlp, Projection, StockShape

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
            feed_forward=Mlp(
                mlp,
                Projection(f"{mlp}.gate_proj", config.intermediate_size),
                Projection(f"{mlp}.up_proj", config.intermediate_size),
                f"{mlp}.down_proj",
                config.intermediate_size,
            ),
            attention_norm=None,
            mlp_norm=None,
            attention_post_norm=f"{path}.post_attention_layernorm",
            mlp_post_norm=f"{path}.post_feedforward_layernorm",
        )

    return Architecture(
        family=config.model_type,
        hidden=config.hidden_size,
        embed="model.embed_tokens",
        blocks=tuple(block(index) for index in range(config.num_hidden_layers)),
        final_norm="model.norm",
        head="lm_head",
        tied=config.tie_word_embeddings,
    )


def uniform(config: PretrainedConfig, shape: StockShape) -> PretrainedConfig | None:
    """The config of this shape; the compressor scales q and k for their norms, whose epsilon the config shares."""
    return reshaped(config, shape)
