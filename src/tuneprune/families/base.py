"""Helpers for family files: parts of an architecture that many families share, and configs of another shape."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import fields
from typing import Any, TypeAlias

from transformers import PretrainedConfig

from tuneprune.structure.architecture import Architecture, Attention, Block, Mlp, NormStyle, Projection, StockShape

HfConfig: TypeAlias = Any
"""A Hugging Face config: every family has its own class, and which attributes it has depends on the family."""
QK_NORM = ("q_norm", "k_norm")
"""The usual names of the norms of queries and keys."""


def head_width(config: HfConfig) -> int:
    """Features of one attention head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def rotary_width(config: HfConfig) -> int:
    """Leading features of a head that RoPE rotates."""
    rope: Mapping[str, Any] = getattr(config, "rope_parameters", None) or {}
    return int(head_width(config) * rope.get("partial_rotary_factor", 1.0))


def plain_attention(
    config: HfConfig, path: str, *, out: str = "o_proj", qk_norm: tuple[str, str] | None = None
) -> Attention:
    """Attention of three separate projections `q_proj`, `k_proj`, `v_proj`; names of norms are relative to `path`."""
    head, num_heads = head_width(config), config.num_attention_heads
    num_kv_heads = getattr(config, "num_key_value_heads", None) or num_heads
    return Attention(
        path=path,
        q=Projection(f"{path}.q_proj", num_heads * head),
        k=Projection(f"{path}.k_proj", num_kv_heads * head),
        v=Projection(f"{path}.v_proj", num_kv_heads * head),
        out=f"{path}.{out}",
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head,
        rotary_dim=rotary_width(config),
        qk_norm=(f"{path}.{qk_norm[0]}", f"{path}.{qk_norm[1]}") if qk_norm else None,
    )


def gated_mlp(config: HfConfig, path: str) -> Mlp:
    """An MLP of three separate projections `gate_proj`, `up_proj`, `down_proj`."""
    width = config.intermediate_size
    gate, up = (Projection(f"{path}.{name}", width) for name in ("gate_proj", "up_proj"))
    return Mlp(path, gate, up, f"{path}.down_proj", width)


def ungated_mlp(config: HfConfig, path: str, up: str, down: str) -> Mlp:
    """An MLP of two projections with an activation in between."""
    width = config.intermediate_size
    return Mlp(path, None, Projection(f"{path}.{up}", width), f"{path}.{down}", width)


def plain_block(config: HfConfig, path: str, *, qk_norm: tuple[str, str] | None = None) -> Block:
    """LLaMA's block; a family with another one replaces what differs."""
    return Block(
        path=path,
        attention=plain_attention(config, f"{path}.self_attn", qk_norm=qk_norm),
        feed_forward=gated_mlp(config, f"{path}.mlp"),
        attention_norm=f"{path}.input_layernorm",
        mlp_norm=f"{path}.post_attention_layernorm",
    )


def plain_decoder(
    config: HfConfig,
    block: Callable[[str], Block],
    norms: NormStyle | None = None,
    *,
    embed: str = "model.embed_tokens",
    layers: str = "model.layers",
    final_norm: str = "model.norm",
) -> Architecture:
    """A decoder of what `block` gives for the path of every layer, under the head `lm_head`."""
    return Architecture(
        family=config.model_type,
        hidden=config.hidden_size,
        embed=embed,
        blocks=tuple(block(f"{layers}.{index}") for index in range(config.num_hidden_layers)),
        final_norm=final_norm,
        head="lm_head",
        tied=config.tie_word_embeddings,
        norms=norms or NormStyle(),
    )


def hosted(config: PretrainedConfig, host: type[PretrainedConfig], **settings: object) -> PretrainedConfig:
    """The config as one of another family whose block computes the same; `settings` are those only the host has."""
    known = {field.name for field in fields(host)} - {"model_type", "architectures"}
    values: dict[str, Any] = {name: value for name, value in config.to_dict().items() if name in known}
    values.update(settings)
    return host(**values)


def reshaped(config: PretrainedConfig, shape: StockShape) -> PretrainedConfig:
    """The config with this shape under the usual names; every kept layer keeps its head size and its own settings."""
    changes: dict[str, object] = {
        "head_dim": head_width(config),
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "intermediate_size": shape.mlp_width,
        "hidden_size": shape.hidden_size,
        "num_hidden_layers": len(shape.kept_layers),
    }
    if hasattr(config, "rms_norm_eps"):  # makes a norm over fewer features equal to the one over masked ones
        changes["rms_norm_eps"] = config.rms_norm_eps * (config.hidden_size / shape.hidden_size)
    for name in ("layer_types", "mlp_layer_types", "no_rope_layers"):
        values = getattr(config, name, None)
        if values is not None:
            changes[name] = [values[layer] for layer in shape.kept_layers]
    config = deepcopy(config)
    for name, value in changes.items():
        setattr(config, name, value)
    return config
