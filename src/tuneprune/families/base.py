"""What family files share: parts of an architecture that many families spell alike, and configs of another shape."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import fields
from typing import Any

from transformers import PretrainedConfig

from tuneprune.structure.architecture import Architecture, Attention, Block, Mlp, NormStyle, Projection, StockShape


def head_width(config: Any) -> int:  # noqa: ANN401
    """Features of one attention head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def rotary_width(config: Any) -> int:  # noqa: ANN401
    """Leading features of a head that RoPE turns."""
    rope: Mapping[str, Any] = getattr(config, "rope_parameters", None) or {}
    return int(head_width(config) * rope.get("partial_rotary_factor", 1.0))


def plain_attention(config: Any, path: str, *, out: str = "o_proj", **facts: Any) -> Attention:  # noqa: ANN401
    """Attention of three separate projections `q_proj`, `k_proj`, `v_proj`; `facts` are further fields."""
    head = head_width(config)
    queries, keys = config.num_attention_heads * head, config.num_key_value_heads * head
    facts = {"rotary_dim": rotary_width(config)} | facts
    return Attention(
        path=path,
        q=Projection(f"{path}.q_proj", queries),
        k=Projection(f"{path}.k_proj", keys),
        v=Projection(f"{path}.v_proj", keys),
        out=f"{path}.{out}",
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=head,
        **facts,
    )


def gated_mlp(config: Any, path: str) -> Mlp:  # noqa: ANN401
    """An MLP of three separate projections `gate_proj`, `up_proj`, `down_proj`."""
    width = config.intermediate_size
    return Mlp(
        path,
        Projection(f"{path}.gate_proj", width),
        Projection(f"{path}.up_proj", width),
        f"{path}.down_proj",
        width,
    )


def plain_decoder(config: Any, block: Callable[[int], Block], norms: NormStyle | None = None) -> Architecture:  # noqa: ANN401
    """The blocks between `model.embed_tokens` and `model.norm`, under the head `lm_head`."""
    return Architecture(
        family=config.model_type,
        hidden=config.hidden_size,
        embed="model.embed_tokens",
        blocks=tuple(block(index) for index in range(config.num_hidden_layers)),
        final_norm="model.norm",
        head="lm_head",
        tied=config.tie_word_embeddings,
        norms=norms or NormStyle(),
    )


def hosted(config: PretrainedConfig, host: type[PretrainedConfig], **settings: object) -> PretrainedConfig:
    """The config under another family's name, whose block computes the same; `settings` are those of the host alone."""
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
    if hasattr(config, "rms_norm_eps"):  # what makes a norm over fewer features equal the one over masked ones
        changes["rms_norm_eps"] = config.rms_norm_eps * (config.hidden_size / shape.hidden_size)
    for name in ("layer_types", "mlp_layer_types", "no_rope_layers"):
        values = getattr(config, name, None)
        if values is not None:
            changes[name] = [values[layer] for layer in shape.kept_layers]
    config = deepcopy(config)
    for name, value in changes.items():
        setattr(config, name, value)
    return config
