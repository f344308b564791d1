"""Mixtures of experts: Mixtral and Qwen3-MoE, LLaMA's block with a router and packed experts in place of the MLP."""

from dataclasses import replace

from transformers import PretrainedConfig

from tuneprune.errors import UnsupportedModel
from tuneprune.families.base import QK_NORM, HfConfig, plain_block, plain_decoder, reshaped
from tuneprune.structure.architecture import Architecture, Block, Experts, StockShape

MODEL_TYPES = ("mixtral", "qwen3_moe")


def describe(config: HfConfig) -> Architecture:
    """Separate attention projections; the weights of all experts of a layer are two tensors.

    Raises:
        UnsupportedModel: some layers have an MLP instead of experts.
    """
    is_qwen = config.model_type == "qwen3_moe"
    if is_qwen and (config.mlp_only_layers or config.decoder_sparse_step != 1):
        raise UnsupportedModel(
            f"{config.model_type}: some layers have an MLP instead of experts. Use a model with experts in all layers."
        )

    def block(path: str) -> Block:
        mlp = f"{path}.mlp"
        params = (f"{mlp}.gate.weight", f"{mlp}.experts.gate_up_proj", f"{mlp}.experts.down_proj")
        return replace(
            plain_block(config, path, qk_norm=QK_NORM if is_qwen else None),
            feed_forward=Experts(mlp, router=f"{mlp}.gate", params=params, num_experts=config.num_experts),
        )

    return plain_decoder(config, block)


def uniform(config: HfConfig, shape: StockShape) -> PretrainedConfig | None:
    """The config of this shape; a token goes to as many experts as before, or to all that are left."""
    small: HfConfig = reshaped(config, shape)
    small.intermediate_size = config.intermediate_size  # the width of one expert, or of an MLP that no layer has
    small.num_experts = shape.num_experts
    small.num_experts_per_tok = min(config.num_experts_per_tok, shape.num_experts)
    return small
