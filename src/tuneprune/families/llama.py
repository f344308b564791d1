"""LLaMA 1 to 3.x and the families with the same block.

Mistral, Qwen2 (qkv bias), Qwen3 (q/k norm), Granite (multipliers), SmolLM3 (some layers without RoPE).
"""

from typing import Any

from transformers import MistralConfig, PretrainedConfig

from tuneprune.families import gated_mlp, plain_attention, plain_decoder, reshaped, rotary_width
from tuneprune.structure.architecture import Architecture, Block, StockShape

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3", "granite", "smollm3")


def describe(config: Any) -> Architecture:  # noqa: ANN401
    """Seven separate projections a block. Biases need no word here: groups take those the weights have."""
    has_rope = getattr(config, "no_rope_layers", None) or [1] * config.num_hidden_layers  # the name says the opposite

    def block(index: int) -> Block:
        path = f"model.layers.{index}"
        attention, mlp = f"{path}.self_attn", f"{path}.mlp"
        return Block(
            path=path,
            attention=plain_attention(
                config,
                attention,
                rotary_dim=rotary_width(config) if has_rope[index] else 0,
                qk_norm=(f"{attention}.q_norm", f"{attention}.k_norm") if config.model_type == "qwen3" else None,
            ),
            feed_forward=gated_mlp(config, mlp),
            attention_norm=f"{path}.input_layernorm",
            mlp_norm=f"{path}.post_attention_layernorm",
        )

    return plain_decoder(config, block)


def uniform(config: PretrainedConfig, shape: StockShape) -> PretrainedConfig | None:
    """The config of this shape; head size and RoPE stay, epsilon follows the norms' width.

    `LlamaConfig` refuses a hidden size that the head count does not divide, but Mistral's block is the same
    one and has no such rule, so such a LLaMA is re-hosted there (it has no biases, hence None where the LLaMA
    has some).
    """
    if config.model_type == "llama" and shape.hidden_size % shape.num_heads:
        if config.attention_bias or config.mlp_bias:
            return None
        settings: dict[str, Any] = reshaped(config, shape).to_dict() | {"sliding_window": None}
        foreign = ("model_type", "architectures", "pretraining_tp")
        return MistralConfig(**{name: value for name, value in settings.items() if name not in foreign})
    return reshaped(config, shape)
