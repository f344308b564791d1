"""The keys of a GGUF file that configure its architecture."""

from collections import Counter

from gguf import GGUFWriter, RopeScalingType

from tuneprune.compress.shape import Shape
from tuneprune.export.targets.base import HfConfig, sliding_window
from tuneprune.export.targets.gguf import rope
from tuneprune.export.targets.gguf.architectures import GEMMA2, GRANITE, Host, context_length
from tuneprune.structure.architecture import Experts

NEVER_REACHED = 1e6
"""A soft cap without effect, for models that have none where llama.cpp would assume one."""


def write(writer: GGUFWriter, shape: Shape, host: Host) -> None:
    """Write widths, norms, RoPE, and settings of single families."""
    config: HfConfig = shape.config
    layers, is_free = shape.layers, host.per_layer
    writer.add_context_length(context_length(host, config)[0])
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(len(layers))
    heads, kv_heads = [layer.num_heads for layer in layers], [layer.num_kv_heads for layer in layers]
    writer.add_head_count(heads if is_free else heads[0])
    writer.add_head_count_kv(kv_heads if is_free else kv_heads[0])
    widths = [layer.mlp_width or config.intermediate_size for layer in layers]
    writer.add_feed_forward_length(widths if is_free else widths[0])
    writer.add_key_length(layers[0].qk_dim)
    writer.add_value_length(layers[0].v_dim)
    _norms(writer, shape, config)
    _rope(writer, shape, host, config)
    _mixture(writer, shape, config)
    _attention(writer, host, config)


def _norms(writer: GGUFWriter, shape: Shape, config: HfConfig) -> None:
    if shape.architecture.norms.is_centred:
        names = ("layer_norm_eps", "norm_epsilon")
        writer.add_layer_norm_eps(next(getattr(config, name) for name in names if hasattr(config, name)))
        return
    stored = getattr(config, "pruned", {}).get("norms", {})
    epsilons = Counter(stored.get(path, (0, config.rms_norm_eps))[1] for path in shape.architecture.stream_norms())
    writer.add_layer_norm_rms_eps(epsilons.most_common(1)[0][0])


def _rope(writer: GGUFWriter, shape: Shape, host: Host, config: HfConfig) -> None:
    settings = rope.settings(config)
    turned = shape.layers[0].qk_dim if host.interleaves else rope.rotary_width(shape.architecture)
    writer.add_rope_dimension_count(turned)
    writer.add_rope_freq_base(settings["rope_theta"])
    kind = settings.get("rope_type", "default")
    if not host.factors:
        if kind == "linear":
            writer.add_rope_scaling_type(RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(settings["factor"])
        return
    amplitude = rope.factors(config, shape.architecture, turned)[1]
    if amplitude != 1.0:
        writer.add_rope_scaling_attn_factors(amplitude)
    if kind == "longrope":
        writer.add_rope_scaling_type(RopeScalingType.LONGROPE)
        writer.add_rope_scaling_orig_ctx_len(settings["original_max_position_embeddings"])


def _mixture(writer: GGUFWriter, shape: Shape, config: HfConfig) -> None:
    if not isinstance(shape.architecture.blocks[0].feed_forward, Experts):
        return
    writer.add_expert_count(shape.layers[0].num_experts)
    writer.add_expert_used_count(config.num_experts_per_tok)
    if hasattr(config, "moe_intermediate_size"):
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)


def _attention(writer: GGUFWriter, host: Host, config: HfConfig) -> None:
    window = sliding_window(config)
    if host.windows and window is not None:
        writer.add_sliding_window(window)
        writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in config.layer_types])
        writer.add_rope_freq_base_swa(rope.settings(config, "sliding_attention")["rope_theta"])
    if hasattr(config, "attn_logit_softcapping") and config.attn_logit_softcapping is not None:
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    elif host == GEMMA2:
        writer.add_attn_logit_softcapping(NEVER_REACHED)
    if hasattr(config, "final_logit_softcapping"):
        writer.add_final_logit_softcapping(config.final_logit_softcapping or NEVER_REACHED)
    if host == GRANITE:
        writer.add_attention_scale(config.attention_multiplier)
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_logit_scale(config.logits_scaling)
    if hasattr(config, "use_parallel_residual"):
        writer.add_parallel_residual(config.use_parallel_residual)
