"""GPT-NeoX and Pythia: one linear holds q, k and v of head after head; attention and a plain MLP mostly in parallel."""

from typing import Any

from transformers import PretrainedConfig

from tuneprune.families.base import head_width, reshaped, rotary_width
from tuneprune.structure.architecture import Architecture, Attention, Block, Mlp, NormStyle, Projection, StockShape

MODEL_TYPES = ("gpt_neox",)


def describe(config: Any) -> Architecture:  # noqa: ANN401
    """Interleaved projections, LayerNorms with one for attention and one for the MLP, biases."""
    head = head_width(config)

    def block(index: int) -> Block:
        path = f"gpt_neox.layers.{index}"
        attention, mlp = f"{path}.attention", f"{path}.mlp"
        q, k, v = (
            Projection(f"{attention}.query_key_value", config.num_attention_heads * head, start, interleaved=3)
            for start in (0, head, 2 * head)
        )
        return Block(
            path=path,
            attention=Attention(
                path=attention,
                q=q,
                k=k,
                v=v,
                out=f"{attention}.dense",
                num_heads=config.num_attention_heads,
                num_kv_heads=config.num_attention_heads,
                head_dim=head,
                rotary_dim=rotary_width(config),
            ),
            feed_forward=Mlp(
                mlp,
                None,
                Projection(f"{mlp}.dense_h_to_4h", config.intermediate_size),
                f"{mlp}.dense_4h_to_h",
                config.intermediate_size,
            ),
            attention_norm=f"{path}.input_layernorm",
            mlp_norm=f"{path}.post_attention_layernorm",
            parallel=config.use_parallel_residual,
        )

    return Architecture(
        family=config.model_type,
        hidden=config.hidden_size,
        embed="gpt_neox.embed_in",
        blocks=tuple(block(index) for index in range(config.num_hidden_layers)),
        final_norm="gpt_neox.final_layer_norm",
        head="lm_head",
        tied=config.tie_word_embeddings,
        norms=NormStyle(is_centred=True),
    )


def uniform(config: Any, shape: StockShape) -> PretrainedConfig | None:  # noqa: ANN401
    """The config of this shape; None where heads go, because the stock class derives their size from their number."""
    if (shape.num_heads, shape.hidden_size) != (config.num_attention_heads, config.hidden_size):
        return None
    return reshaped(config, shape)
