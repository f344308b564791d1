"""OLMo 2: norms after attention and MLP instead of before, and over all heads of q and of k together."""

from dataclasses import replace

from tuneprune.families.base import QK_NORM, HfConfig, plain_block, plain_decoder, reshaped
from tuneprune.structure.architecture import Architecture, Block

MODEL_TYPES = ("olmo2",)


def describe(config: HfConfig) -> Architecture:
    """LLaMA's projections, which read the residual stream itself."""

    def block(path: str) -> Block:
        plain = plain_block(config, path, qk_norm=QK_NORM)
        return replace(
            plain,
            attention=replace(plain.attention, qk_norm_joins_heads=True),
            attention_norm=None,
            mlp_norm=None,
            attention_post_norm=f"{path}.post_attention_layernorm",
            mlp_post_norm=f"{path}.post_feedforward_layernorm",
        )

    return plain_decoder(config, block)


uniform = reshaped  # the cut scales q and k for their norms, because the config has one epsilon for all norms
