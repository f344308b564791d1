"""GPT-NeoX and Pythia: one linear has q, k and v of head after head; attention and MLP are mostly parallel."""

from dataclasses import replace

from transformers import PretrainedConfig

from tuneprune.families.base import HfConfig, head_width, plain_attention, plain_decoder, reshaped, ungated_mlp
from tuneprune.structure.architecture import Architecture, Block, NormStyle, Projection, StockShape

MODEL_TYPES = ("gpt_neox",)


def describe(config: HfConfig) -> Architecture:
    """Interleaved projections, LayerNorms with one for attention and one for the MLP, biases."""
    head = head_width(config)

    def block(path: str) -> Block:
        attention = plain_attention(config, f"{path}.attention", out="dense")
        q, k, v = (
            Projection(f"{attention.path}.query_key_value", attention.q.rows, start, interleaved=3)
            for start in (0, head, 2 * head)
        )
        return Block(
            path=path,
            attention=replace(attention, q=q, k=k, v=v),
            feed_forward=ungated_mlp(config, f"{path}.mlp", "dense_h_to_4h", "dense_4h_to_h"),
            attention_norm=f"{path}.input_layernorm",
            mlp_norm=f"{path}.post_attention_layernorm",
            parallel=config.use_parallel_residual,
        )

    return plain_decoder(
        config,
        block,
        NormStyle(is_centred=True),
        embed="gpt_neox.embed_in",
        layers="gpt_neox.layers",
        final_norm="gpt_neox.final_layer_norm",
    )


def uniform(config: HfConfig, shape: StockShape) -> PretrainedConfig | None:
    """The config of this shape; None if heads are removed: the stock class derives their size from their number."""
    if (shape.num_heads, shape.hidden_size) != (config.num_attention_heads, config.hidden_size):
        return None
    return reshaped(config, shape)
