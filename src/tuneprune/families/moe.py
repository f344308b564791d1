"""Mixtures of experts: Mixtral and Qwen3-MoE, LLaMA's block with a router and packed experts for an MLP."""

from typing import Any

from transformers import PretrainedConfig

from tuneprune.errors import UnsupportedModel
from tuneprune.families.base import plain_attention, plain_decoder, reshaped
from tuneprune.structure.architecture import Architecture, Block, Experts, StockShape

MODEL_TYPES = ("mixtral", "qwen3_moe")


def describe(config: Any) -> Architecture:  # noqa: ANN401
    """Separate attention projections; the weights of all experts of a layer are two tensors.

    Raises:
        UnsupportedModel: some layers have an MLP instead of experts.
    """
    has_qk_norm = config.model_type == "qwen3_moe"
    if has_qk_norm and (config.mlp_only_layers or config.decoder_sparse_step != 1):
        raise UnsupportedModel(
            f"{config.model_type}: some layers have an MLP instead of experts. Use a model with experts in all layers."
        )

    def block(index: int) -> Block:
        path = f"model.layers.{index}"
        attention, mlp = f"{path}.self_attn", f"{path}.mlp"
        return Block(
            path=path,
            attention=plain_attention(
                config, attention, qk_norm=(f"{attention}.q_norm", f"{attention}.k_norm") if has_qk_norm else None
            ),
            feed_forward=Experts(
                mlp,
                router=f"{mlp}.gate",
                params=(f"{mlp}.gate.weight", f"{mlp}.experts.gate_up_proj", f"{mlp}.experts.down_proj"),
                num_experts=config.num_experts,
            ),
            attention_norm=f"{path}.input_layernorm",
            mlp_norm=f"{path}.post_attention_layernorm",
        )

    return plain_decoder(config, block)


def uniform(config: Any, shape: StockShape) -> PretrainedConfig | None:  # noqa: ANN401
    """The config of this shape; a token goes to as many experts as before, or to all that are left."""
    small: Any = reshaped(config, shape)
    small.intermediate_size = config.intermediate_size  # the width of one expert, or of an MLP that no layer has
    small.num_experts = shape.num_experts
    small.num_experts_per_tok = min(config.num_experts_per_tok, shape.num_experts)
    return small
