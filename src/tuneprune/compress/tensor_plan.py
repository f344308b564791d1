"""Plans the smaller model from shapes alone: its config, and which part of a dense tensor each of its tensors is."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from tuneprune import families
from tuneprune.compress.modeling_pruned import epsilon_name, equal_layers, fit_layers
from tuneprune.compress.pruned_config import (
    has_skips,
    index_buffers,
    new_biases,
    pruned_entry,
    router_tensors,
    skip_cuts,
)
from tuneprune.errors import PlanMismatch
from tuneprune.structure.architecture import Architecture, Projection
from tuneprune.structure.edits import Drop, Route
from tuneprune.structure.plan import Plan
from tuneprune.structure.space import PruningSpace


@dataclass(frozen=True)
class Part:
    """A tensor of the smaller model as a part of the dense model's tensor `source`.

    It has the positions `kept` by dimension (all of a dimension without an entry), multiplied by `factor`; the weight
    of a norm is multiplied after adding `offset`.
    """

    source: str
    kept: Mapping[int, Int[Tensor, " n"]]
    factor: float = 1.0
    offset: float = 0.0

    def of(self, tensor: Tensor) -> Tensor:
        """The part's values, given the source's; `tensor` itself if nothing changes."""
        for dim, positions in self.kept.items():
            tensor = tensor.index_select(dim, positions.to(tensor.device))
        if self.factor == 1.0:
            return tensor
        scaled = (tensor.double() + self.offset) * self.factor - self.offset  # rounded once, not at every operation
        return scaled.to(tensor.dtype)

    def rounded(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        """The source's values, changed so that storing the part in `dtype` loses nothing."""
        if self.factor == 1.0:
            return tensor.to(dtype).to(tensor.dtype)
        stored = ((tensor.double() + self.offset) * self.factor - self.offset).to(dtype)
        return ((stored.double() + self.offset) / self.factor - self.offset).to(tensor.dtype)

    def shape(self, dense: tuple[int, ...]) -> tuple[int, ...]:
        """The part's shape, given the source's."""
        return tuple(len(self.kept[dim]) if dim in self.kept else size for dim, size in enumerate(dense))

    def rows(self, start: int, stop: int) -> tuple[int, int, "Part"]:
        """The source's rows around the part's rows from `start` to `stop`, and these as a part of those."""
        if 0 not in self.kept:
            return start, stop, self
        rows = self.kept[0][start:stop]
        first, last = int(rows[0]), int(rows[-1])  # positions ascend
        return first, last + 1, replace(self, kept={**self.kept, 0: rows - first})


@dataclass(frozen=True)
class TensorPlan:
    """The smaller model: of the stock class of its config, resized if that has an entry `pruned`.

    Its tensors, by state-dict name, are `parts` of those of the rewritten dense model, and `added` ones.
    """

    parts: Mapping[str, Part]
    added: Mapping[str, Tensor]
    config: PretrainedConfig

    @property
    def is_stock(self) -> bool:
        """Whether the stock class can hold it without resizing."""
        return not hasattr(self.config, "pruned")


def plan_tensors(model: PreTrainedModel, architecture: Architecture, space: PruningSpace, plan: Plan) -> TensorPlan:
    """The smaller model that cutting the rewritten dense `model` gives. Looks at no weights, so it may have none.

    Raises:
        PlanMismatch: the plan belongs to another space, or drops layers of a model that no stock class can hold.
    """
    biased, routes, widths = new_biases(space, plan), plan.of_kind(Route), plan.widths(space)
    is_plain = not (biased or routes or has_skips(plan))
    stock = families.uniform_config(model.config, architecture, space, widths) if is_plain else None
    dropped = {edit.block for edit in plan.of_kind(Drop)}
    if dropped and stock is None:
        raise PlanMismatch(
            "The plan both drops layers and adds biases, routers or skip matrices; it can do only one of these."
        )
    narrowed = _narrowed_norms(architecture, space, widths)
    gains = {f"{norm}.weight": math.sqrt(factor) for norm, factor in narrowed.items()}
    factors = gains | (_projection_factors(architecture, narrowed) if stock is not None else {})
    kept: dict[str, dict[int, Tensor]] = {}
    cuts = {**plan.lower(space), **skip_cuts(architecture, space, plan)}
    # No group of the space names new biases; they lose what the rows of their weights lose.
    cuts |= {(f"{path}.bias", 0): cuts[f"{path}.weight", 0] for path in biased if (f"{path}.weight", 0) in cuts}
    for (name, dim), positions in cuts.items():
        kept.setdefault(name, {})[dim] = positions
    dense = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    parts = {
        name: Part(old, kept.get(old, {}), factors.get(old, 1.0), architecture.norms.offset if old in gains else 0.0)
        for name, old in _names_left(dense, architecture, dropped)
    }
    if stock is not None:
        return TensorPlan(_rehosted(parts, dense, architecture.without(dropped), stock), {}, stock)
    shapes = {name: part.shape(dense[part.source]) for name, part in parts.items()}
    config: Any = families.ragged_config(model.config, architecture, widths)
    config.pruned = pruned_entry(architecture, space, plan, shapes, _stated_shapes(config))
    config.pruned["norms"] = {
        norm: [shapes[f"{norm}.weight"][0], _epsilon(model, norm) * factor] for norm, factor in narrowed.items()
    }
    added = index_buffers(architecture, space, plan) | router_tensors(routes, model.dtype)
    return TensorPlan(parts, added, config)


def rescaled_weights(
    model: PreTrainedModel, architecture: Architecture, space: PruningSpace, plan: Plan
) -> dict[str, Part]:
    """The parts of those weights of the rewritten dense model that the cut multiplies by a factor, by name."""
    parts = plan_tensors(model, architecture, space, plan).parts.values()
    return {part.source: part for part in parts if part.factor != 1.0}


def _stated_shapes(config: PretrainedConfig) -> dict[str, tuple[int, ...]]:
    """The shapes of all tensors that the config states, its layers' own widths included."""
    with torch.device("meta"), equal_layers(config):
        stock = AutoModelForCausalLM.from_config(config)
    with torch.device("meta"):
        fit_layers(stock)
    return {name: tuple(tensor.shape) for name, tensor in stock.state_dict().items()}


def _names_left(
    names: Mapping[str, object], architecture: Architecture, dropped: set[str]
) -> Iterator[tuple[str, str]]:
    """New and old names of all tensors outside the dropped blocks; the other blocks are renumbered."""
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
    """The parts by the names of the stock class, which may have separate linears where the dense model packs several.

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
    """The norms that lose some features, each with d / d', the number it had over the number it keeps.

    An RMSNorm over the d' kept features equals the one over all d, with the others masked, if its weight is multiplied
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
    """Factors on q and k that replace an epsilon of their own for the q/k norms of a stock class.

    Its config has one epsilon for all norms, which is that of the stream's norms. The norm of c x at epsilon c^2 e is
    the norm of x at epsilon e.
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
