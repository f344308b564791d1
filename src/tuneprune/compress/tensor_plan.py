"""What the smaller model is made of, decided from shapes alone: its class, and each of its tensors as a part of one."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from tuneprune import families
from tuneprune.compress.biases import new_biases, with_new_biases
from tuneprune.compress.layout import has_skips, indices, layout, routers, skip_cuts
from tuneprune.compress.modeling_pruned import epsilon_name, equal_layers, fit_layers
from tuneprune.errors import PlanMismatch
from tuneprune.structure.architecture import Architecture, Projection
from tuneprune.structure.edits import Drop, Route
from tuneprune.structure.plan import Plan
from tuneprune.structure.space import PruningSpace


@dataclass(frozen=True)
class Part:
    """What a tensor of the smaller model has of the dense model's `source`.

    The positions `kept` by dimension (all where it has none), then times `factor`, which a norm applies to its weight
    plus `offset`.
    """

    source: str
    kept: Mapping[int, Int[Tensor, " n"]]
    factor: float = 1.0
    offset: float = 0.0

    def of(self, tensor: Tensor) -> Tensor:
        """The part, of the source's values; `tensor` itself where nothing changes."""
        for dim, positions in self.kept.items():
            tensor = tensor.index_select(dim, positions.to(tensor.device))
        if self.factor == 1.0:
            return tensor
        scaled = (tensor.double() + self.offset) * self.factor - self.offset  # rounded once, not at every operation
        return scaled.to(tensor.dtype)

    def rounded(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        """The source's values for which the part's values, stored in `dtype`, are exact."""
        if self.factor == 1.0:
            return tensor.to(dtype).to(tensor.dtype)
        stored = ((tensor.double() + self.offset) * self.factor - self.offset).to(dtype)
        return ((stored.double() + self.offset) / self.factor - self.offset).to(tensor.dtype)

    def shape(self, dense: tuple[int, ...]) -> tuple[int, ...]:
        """The part's shape, of the source's."""
        return tuple(len(self.kept[dim]) if dim in self.kept else size for dim, size in enumerate(dense))

    def rows(self, start: int, stop: int) -> tuple[int, int, "Part"]:
        """Which rows of the source hold the part's rows from `start` to `stop`, and these as a part of those."""
        if 0 not in self.kept:
            return start, stop, self
        rows = self.kept[0][start:stop]
        first, last = int(rows[0]), int(rows[-1])  # positions ascend
        return first, last + 1, replace(self, kept={**self.kept, 0: rows - first})


@dataclass(frozen=True)
class Recipe:
    """The smaller model: of the stock class of its config, resized where that has an entry `pruned`.

    Its tensors are `parts` of the rewritten dense model's and `own` ones, by state-dict name.
    """

    parts: Mapping[str, Part]
    own: Mapping[str, Tensor]
    config: PretrainedConfig

    @property
    def is_stock(self) -> bool:
        """Whether the stock class holds it as it is."""
        return not hasattr(self.config, "pruned")


def draw(model: PreTrainedModel, architecture: Architecture, space: PruningSpace, plan: Plan) -> Recipe:
    """What cutting the rewritten dense `model` by the plan makes of it. Looks at no weights, so it may have none.

    Raises:
        PlanMismatch: the plan belongs to another space, or drops layers of a model that no stock class holds.
    """
    added, routes, widths = new_biases(space, plan), plan.of_kind(Route), plan.widths(space)
    is_plain = not (added or routes or has_skips(plan))
    stock = families.uniform_config(model.config, architecture, space, widths) if is_plain else None
    dropped = {edit.block for edit in plan.of_kind(Drop)}
    if dropped and stock is None:
        raise PlanMismatch("The plan drops layers and adds biases, routers or skip matrices too; it can do only one.")
    narrowed = _narrowed_norms(architecture, space, widths)
    gains = {f"{norm}.weight": math.sqrt(factor) for norm, factor in narrowed.items()}
    factors = gains | (_projection_factors(architecture, narrowed) if stock is not None else {})
    kept: dict[str, dict[int, Tensor]] = {}
    for (name, dim), positions in with_new_biases(
        {**plan.lower(space), **skip_cuts(architecture, space, plan)}, added
    ).items():
        kept.setdefault(name, {})[dim] = positions
    dense = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    parts = {
        name: Part(old, kept.get(old, {}), factors.get(old, 1.0), architecture.norms.offset if old in gains else 0.0)
        for name, old in _names_left(dense, architecture, dropped)
    }
    if stock is not None:
        return Recipe(_rehosted(parts, dense, architecture.without(dropped), stock), {}, stock)
    shapes = {name: part.shape(dense[part.source]) for name, part in parts.items()}
    config: Any = families.ragged_config(model.config, architecture, widths)
    config.pruned = layout(architecture, space, plan, shapes, _shapes_said(config))
    config.pruned["norms"] = {
        norm: [shapes[f"{norm}.weight"][0], _epsilon(model, norm) * factor] for norm, factor in narrowed.items()
    }
    return Recipe(parts, indices(architecture, space, plan) | routers(routes, model.dtype), config)


def rescaled_weights(
    model: PreTrainedModel, architecture: Architecture, space: PruningSpace, plan: Plan
) -> dict[str, Part]:
    """The weights of the rewritten dense model that the cut multiplies by a factor, by name, with their parts."""
    parts = draw(model, architecture, space, plan).parts.values()
    return {part.source: part for part in parts if part.factor != 1.0}


def _shapes_said(config: PretrainedConfig) -> dict[str, tuple[int, ...]]:
    """The shapes of all tensors as transformers' config has them, its layers' own widths included."""
    with torch.device("meta"), equal_layers(config):
        stock = AutoModelForCausalLM.from_config(config)
    with torch.device("meta"):
        fit_layers(stock)
    return {name: tuple(tensor.shape) for name, tensor in stock.state_dict().items()}


def _names_left(
    names: Mapping[str, object], architecture: Architecture, dropped: set[str]
) -> Iterator[tuple[str, str]]:
    """New and old name of all tensors outside of the dropped blocks, the others being renumbered."""
    moves = architecture.moves(dropped)
    for name in names:
        block = next((block.path for block in architecture.blocks if name.startswith(f"{block.path}.")), None)
        if block is None:
            yield name, name
        elif block in moves:
            yield moves[block] + name.removeprefix(block), name


def _rehosted(
    parts: Mapping[str, Part], dense: Mapping[str, tuple[int, ...]], architecture: Architecture, stock: PretrainedConfig
) -> dict[str, Part]:
    """The parts by the names of the stock class, which may hold apart the projections that the dense model packs.

    Args:
        architecture: the dense model's, without the dropped blocks.
    """
    host = families.describe_config(stock)
    packed: dict[str, list[tuple[str, Projection]]] = {}
    for block, hosting in zip(architecture.blocks, host.blocks, strict=True):
        for old, new in zip(block.projections, hosting.projections, strict=True):
            if old.module != new.module:
                packed.setdefault(old.module, []).append((new.module, old))
    rehosted: dict[str, Part] = {}
    for name, part in parts.items():
        module, _, tensor = name.rpartition(".")
        if module not in packed:
            rehosted[name] = part
        for new, projection in packed.get(module, ()):
            rows = part.kept.get(0, torch.arange(dense[part.source][0]))
            inside = rows[(rows >= projection.start) & (rows < projection.end)]
            rehosted[f"{new}.{tensor}"] = replace(part, kept={**part.kept, 0: inside})
    return rehosted


def _narrowed_norms(architecture: Architecture, space: PruningSpace, widths: Mapping[str, int]) -> dict[str, float]:
    """The norms that lose some features, each with d / d': the features it had over those it keeps.

    An RMSNorm over the d' kept features equals the one over d of which the others are masked, where its weight grows
    by sqrt(d / d') and its epsilon by d / d'.
    """
    norms = {norm for block in architecture.blocks for norm in block.attention.qk_norm or ()}
    norms |= set(architecture.stream_norms())
    return {
        piece.param.removesuffix(".weight"): group.size / widths[group.name]
        for group in space.groups
        for piece in group.slices
        if piece.param.removesuffix(".weight") in norms and 0 < widths[group.name] < group.size
    }


def _projection_factors(architecture: Architecture, narrowed: Mapping[str, float]) -> dict[str, float]:
    """What an epsilon of their own would do for the q/k norms of a stock class, whose config has one for all norms.

    The stream's norms decide on it. The norm of c x at epsilon c^2 e is the norm of x at epsilon e.
    """
    common = narrowed.get(architecture.final_norm, 1.0)
    factors: dict[str, float] = {}
    for block in architecture.blocks:
        parts = zip(block.attention.qk_norm or (), (block.attention.q, block.attention.k), strict=False)
        for norm, projection in parts:
            factor = math.sqrt(common / narrowed.get(norm, 1.0))
            factors |= {f"{projection.module}.weight": factor, f"{projection.module}.bias": factor}
    return factors


def _epsilon(model: PreTrainedModel, norm: str) -> float:
    stock: Any = model.get_submodule(norm)
    return getattr(stock, epsilon_name(stock))
