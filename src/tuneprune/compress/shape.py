"""The shape of a model, read from its config: the widths of each layer, and what no stock class can do."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PretrainedConfig

from tuneprune import families
from tuneprune.compress.modeling_pruned import equal_layers
from tuneprune.families.base import HfConfig
from tuneprune.structure.architecture import Architecture, Block, Experts


@dataclass(frozen=True)
class LayerShape:
    """Widths of one decoder layer; `mlp_width` is 0 in a mixture of experts, `num_experts` in other layers."""

    num_heads: int
    num_kv_heads: int
    qk_dim: int
    v_dim: int
    mlp_width: int
    num_experts: int = 0


@dataclass(frozen=True)
class Shape:
    """A model as its config states it.

    `architecture` is that of the config's stock class, without any layer's own widths. `oddities` are the features that
    no stock class has: `biases`, `routers` and `skip matrices` that a plan added, layers that use `parts of the stream`
    or have their own `rotary pairs`.
    """

    config: PretrainedConfig
    architecture: Architecture
    hidden: int
    layers: tuple[LayerShape, ...]
    oddities: frozenset[str] = frozenset()

    @classmethod
    def of(cls, config: HfConfig) -> "Shape":
        """The shape of an exported model, stock or ragged, or of any model of a known family.

        Raises:
            UnsupportedModel: no family file knows this model type.
        """
        with equal_layers(config):
            architecture = families.describe_config(config)
        pruned: Mapping[str, Mapping[str, Any]] = getattr(config, "pruned", {})
        own = (families.describe_config(layer).blocks[index] for index, layer in enumerate(config.per_layer_config))
        layers = tuple(_layer(block, pruned) for block in own)
        hidden = pruned.get("stream", {}).get("width", architecture.hidden)
        return cls(config, architecture, hidden, layers, frozenset(_oddities(pruned)))

    @property
    def is_ragged(self) -> bool:
        """Whether no stock class can hold it, so that it comes with a modelling file."""
        return hasattr(self.config, "pruned")

    @property
    def widths(self) -> dict[str, set[int]]:
        """All values of each width over the layers."""
        return {name: {getattr(layer, name) for layer in self.layers} for name in LayerShape.__annotations__}


def _layer(block: Block, pruned: Mapping[str, Mapping[str, Any]]) -> LayerShape:
    attention, mlp = block.attention, block.feed_forward
    linears = pruned.get("linears", {})
    own = pruned.get("attentions", {}).get(attention.path, {})
    v_dim = own.get("v_dim", attention.head_dim)
    num_heads = linears.get(attention.out, [attention.num_heads * v_dim])[0] // v_dim
    is_mixture = isinstance(mlp, Experts)
    kept = [pruned.get("experts", {}).get(path, mlp.num_experts) for path in mlp.modules] if is_mixture else [0]
    return LayerShape(
        num_heads=num_heads,
        num_kv_heads=num_heads // attention.queries_per_kv,
        qk_dim=own.get("qk_dim", attention.head_dim),
        v_dim=v_dim,
        mlp_width=0 if is_mixture else linears.get(mlp.down, [mlp.width])[0],
        num_experts=kept[0],
    )


def _oddities(pruned: Mapping[str, Mapping[str, Any]]) -> set[str]:
    parts = [*pruned.get("attentions", {}).values(), *pruned.get("mlps", {}).values()]
    found = {
        "biases": any(len(shape) > 2 for shape in pruned.get("linears", {}).values()),
        "routers": any("experts" in part for part in parts),
        "skip matrices": bool(pruned.get("stream", {}).get("skips")),
        "parts of the stream": any({"read", "write"} & part.keys() for part in parts),
        "rotary pairs": any("rotary" in part for part in parts),
    }
    return {name for name, is_there in found.items() if is_there}
