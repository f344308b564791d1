"""Constants of a model that its host has no key for, multiplied into the weights instead."""

from tuneprune.compress.shape import Shape
from tuneprune.export.targets.base import HfConfig
from tuneprune.export.targets.gguf.architectures import GRANITE, Host

LAYERS_OF_27B = {"gemma2": 46, "gemma3": 62}
"""llama.cpp scales attention by the width of the stream in models with these numbers of layers."""


def folded(host: Host, shape: Shape) -> dict[str, float]:
    """Factors of weights by their name in the file (without the layer), where they are not one."""
    config: HfConfig = shape.config
    if host.name in LAYERS_OF_27B:
        return _gemma(host, shape, config)
    if hasattr(config, "residual_multiplier") and host != GRANITE:
        return _granite(shape, config)
    return {}


def _gemma(host: Host, shape: Shape, config: HfConfig) -> dict[str, float]:
    """Gemma scales attention by a constant of its own, and embeddings by the width of the dense residual stream."""
    layer = shape.layers[0]
    is_27b = len(shape.layers) == LAYERS_OF_27B[host.name]
    divisor = shape.hidden // layer.num_heads if is_27b else layer.qk_dim
    attention = (divisor / config.query_pre_attn_scalar) ** 0.5
    stream = (config.hidden_size / shape.hidden) ** 0.5
    queries = "attn_q_norm" if shape.architecture.blocks[0].attention.qk_norm else "attn_q"
    head = 1 / stream if shape.architecture.tied else 1.0
    return {queries: attention, "token_embd": stream, "output_norm": head}


def _granite(shape: Shape, config: HfConfig) -> dict[str, float]:
    """Granite's multipliers; a tied head sees the embedding's, which its norm undoes."""
    embedding = config.embedding_multiplier
    return {
        "token_embd": embedding,
        "attn_q": config.attention_multiplier * shape.layers[0].qk_dim ** 0.5,
        "attn_output": config.residual_multiplier,
        "ffn_down": config.residual_multiplier,
        "output_norm": 1 / config.logits_scaling / (embedding if shape.architecture.tied else 1.0),
    }
