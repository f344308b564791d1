"""The supported model families: one file each, found by being in this folder."""

import importlib
import pkgutil
from collections.abc import Mapping
from copy import deepcopy
from functools import cache
from types import ModuleType
from typing import cast

from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PretrainedConfig, PreTrainedModel

from tuneprune.errors import UnsupportedModel, suggest
from tuneprune.families.base import HfConfig, head_width
from tuneprune.structure.architecture import Architecture, Block, Mlp, StockShape
from tuneprune.structure.space import PruningSpace
from tuneprune.structure.weights import base_weight


@cache
def registry() -> dict[str, ModuleType]:
    """The family file of every Hugging Face model type, which has `describe` and `uniform`."""
    known: dict[str, ModuleType] = {}
    for module in pkgutil.iter_modules(__path__):
        if module.name == "base":
            continue
        family = importlib.import_module(f"{__name__}.{module.name}")
        known |= dict.fromkeys(family.MODEL_TYPES, family)
    return dict(sorted(known.items()))


def describe(model: PreTrainedModel) -> Architecture:
    """The architecture of a model, with or without LoRA, checked against its weights.

    Raises:
        UnsupportedModel: no family file knows this model type, or its modules or their widths are not those that the
            family derives from the config.
    """
    architecture = describe_config(model.config)
    names = dict(model.named_modules())
    for linear, shape in _linear_shapes(architecture).items():
        if linear not in names:
            raise UnsupportedModel(
                f"{architecture.family}: the model has no module `{linear}`. Use a causal language model."
            )
        actual = tuple(base_weight(model, f"{linear}.weight").shape)
        if actual != shape:
            raise UnsupportedModel(
                f"{architecture.family}: `{linear}` is {actual[0]} x {actual[1]}, but the config says"
                f" {shape[0]} x {shape[1]}. Use the dense model: one with its own widths per layer cannot be pruned."
            )
    return architecture


def _linear_shapes(architecture: Architecture) -> dict[str, tuple[int, int]]:
    """The (outputs, inputs) of every linear inside the blocks."""
    shapes: dict[str, tuple[int, int]] = {}
    for block in architecture.blocks:
        attention, mlp = block.attention, block.feed_forward
        for part in block.projections:
            shapes[part.module] = (part.end, architecture.hidden)
        shapes[attention.out] = (architecture.hidden, attention.num_heads * attention.head_dim)
        if isinstance(mlp, Mlp):
            shapes[mlp.down] = (architecture.hidden, mlp.width)
    return shapes


def describe_config(config: HfConfig) -> Architecture:
    """The architecture a Hugging Face config describes.

    Raises:
        UnsupportedModel: no family file knows this model type.
    """
    refuse_unknown(config.model_type)
    return registry()[config.model_type].describe(config)


def refuse_unknown(model_type: str) -> None:
    """Refuse a model type that no family file knows.

    Raises:
        UnsupportedModel: names those that are known.
    """
    known = registry()
    if model_type not in known:
        raise UnsupportedModel(
            f"Model type `{model_type}` is not supported; known families are {', '.join(known)}. Use a"
            f" model of one of these.{suggest(model_type, known)}"
        )


def uniform_config(
    config: PretrainedConfig, architecture: Architecture, space: PruningSpace, widths: Mapping[str, int]
) -> PretrainedConfig | None:
    """The config of the stock class that can hold these widths, or None if no stock class can.

    A stock class needs one number of KV groups, of MLP channels and of experts for all layers, one width of the
    residual stream, and every other kind of group kept whole. Layers may be missing.
    """
    uniform = ("kv_group", "mlp_channel", "expert")
    by_kind: dict[str, set[int]] = {}
    dropped = {group.name for group in space.groups if group.kind == "block" and not widths[group.name]}
    for group in space.groups:
        kept = widths[group.name]
        if group.kind not in (*uniform, "hidden", "block") and kept < group.size:
            return None
        by_kind.setdefault(group.kind, set()).add(kept)
    if any(len(by_kind.get(kind, ())) > 1 for kind in uniform):
        return None
    attention, mlp = architecture.blocks[0].attention, architecture.blocks[0].feed_forward
    num_channels, num_experts = (mlp.width, 0) if isinstance(mlp, Mlp) else (0, mlp.num_experts)
    groups = next(iter(by_kind.get("kv_group", {attention.num_kv_heads})))
    shape = StockShape(
        num_heads=groups * attention.queries_per_kv,
        num_kv_heads=groups,
        mlp_width=next(iter(by_kind.get("mlp_channel", {num_channels}))),
        hidden_size=next(iter(by_kind.get("hidden", {architecture.hidden}))),
        kept_layers=tuple(index for index, block in enumerate(architecture.blocks) if block.path not in dropped),
        num_experts=next(iter(by_kind.get("expert", {num_experts}))),
    )
    return registry()[config.model_type].uniform(config, shape)


def ragged_config(config: PretrainedConfig, architecture: Architecture, widths: Mapping[str, int]) -> PretrainedConfig:
    """The config with every layer's own numbers of heads and channels, in the form that transformers reads.

    The values for the whole model stay the dense ones: they break no rule of a config class, a head size derived from
    them is right, and a program that reads nothing else gets an upper bound. Numbers of heads that the stock class
    cannot have (even with equal layers) are left out.
    """
    ragged: HfConfig = deepcopy(config)
    ragged.head_dim = head_width(config)  # otherwise it would be derived from a layer's number of heads
    own: dict[int, dict[str, int]] = {}
    for index, block in enumerate(architecture.blocks):
        if isinstance(block.feed_forward, Mlp):
            settings = _own_widths(ragged, architecture, block, widths)
            own[index] = {name: value for name, value in settings.items() if value != getattr(ragged, name, value)}
    if any(own.values()):
        ragged.allow_global_per_layer_attribute_access = True
        ragged.per_layer_config = own
    return ragged


def _own_widths(
    config: HfConfig, architecture: Architecture, block: Block, widths: Mapping[str, int]
) -> dict[str, int]:
    """One layer's numbers of channels and heads under the names of the config."""
    attention, mlp = block.attention, block.mlp
    groups, channels = widths.get(attention.path, attention.num_kv_heads), widths.get(mlp.path, mlp.width)
    layers = tuple(range(len(architecture.blocks)))
    shape = StockShape(groups * attention.queries_per_kv, groups, channels, architecture.hidden, layers)
    if groups < attention.num_kv_heads and registry()[config.model_type].uniform(config, shape) is None:
        return {"intermediate_size": channels}
    return {
        "intermediate_size": channels,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
    }


def stock_class(config: PretrainedConfig) -> type[PreTrainedModel]:
    """The Hugging Face causal LM class of a config."""
    return cast("type[PreTrainedModel]", MODEL_FOR_CAUSAL_LM_MAPPING[type(config)])
