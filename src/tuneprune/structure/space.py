"""What may be removed: groups of units, and where the units of each group are in the weights."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

Kind = Literal["kv_group", "mlp_channel", "qk_pair", "vo_dim", "read", "write", "hidden", "block", "expert"]
Masks = Mapping[str, Float[Tensor, " units"]]
"""Mask by group name: 1 keeps a unit, 0 removes it. Soft and hard masks have the same type."""


@dataclass(frozen=True)
class Segment:
    """A run of positions from `start`, read row-major as `view`, with units along `axis`.

    kv groups in q_proj:    view=(num_kv_heads, queries_per_kv * head_dim), axis=0
    rotary pairs in q_proj: view=(num_heads, 2, head_dim // 2), axis=2; dims j and j + head_dim / 2 rotate together
    k in a packed qkv:      view=(num_kv_heads, head_dim), axis=0, start=num_heads * head_dim
    """

    view: tuple[int, ...]
    axis: int
    start: int = 0

    @property
    def extent(self) -> int:
        """Number of positions covered."""
        return math.prod(self.view)

    def positions(self, units: Int[Tensor, " n"]) -> Int[Tensor, " m"]:
        """The positions of `units`."""
        grid = torch.arange(self.extent).view(self.view) + self.start
        return grid.index_select(self.axis, units.cpu()).flatten()

    def by_unit(self, tensor: Tensor, dim: int = 0) -> Float[Tensor, "units entries"]:
        """The entries of `tensor` that every unit owns, of which `dim` is the dimension covered."""
        rows = tensor.narrow(dim, self.start, self.extent).movedim(dim, 0)
        return rows.reshape(*self.view, -1).movedim(self.axis, 0).reshape(self.view[self.axis], -1)

    def spread(self, mask: Float[Tensor, " units"]) -> Float[Tensor, " extent"]:
        """The mask of every position, from the mask of every unit. Differentiable."""
        shape = [1] * len(self.view)
        shape[self.axis] = -1
        return mask.view(shape).expand(self.view).reshape(-1)


@dataclass(frozen=True)
class WeightSlice:
    """The place of one group in one parameter: along dimension `dim`, at `segment`."""

    param: str
    dim: int
    segment: Segment


@dataclass(frozen=True)
class Gate:
    """Where a mask multiplies an activation: the input or the output of `module`, at `segment`.

    On the side `router` it multiplies the odds that the router `module` gives to each of its choices, before it picks
    the best. `base_only` gates act on the frozen path of a LoRA layer and leave the LoRA path open (ATP's LoRA-aware
    forward). Some modules exist only in a rewritten model; in others the gate is skipped.
    """

    module: str
    side: Literal["input", "output", "router"]
    segment: Segment
    base_only: bool = False


@dataclass(frozen=True)
class Group:
    """`size` units of one kind at one place of the model; removing a unit removes it from all `slices`.

    `gates` simulate the removal exactly; `tuning_gates` are those of ATP's LoRA-aware tuning forward, which mask only
    the frozen weights that produce the units. `features` is the number of features of the exported width per unit (2
    for a rotary pair, 0 for a layer, which has no width).
    """

    name: str
    layer: int
    kind: Kind
    size: int
    slices: tuple[WeightSlice, ...]
    gates: tuple[Gate, ...]
    tuning_gates: tuple[Gate, ...]
    features: int = 1


@dataclass(frozen=True)
class Latency:
    """The time of one forward pass in nanoseconds, as the sum of `fixed` and the time of every group's kept units.

    `steps[name][n]` is the time of group `name` with n units, and never falls with n. Times are whole numbers, so that
    their sum does not depend on the order.
    """

    fixed: int
    steps: Mapping[str, tuple[int, ...]]

    @cached_property
    def dense(self) -> int:
        """The time when nothing is removed."""
        return self.count({})

    def count(self, kept: Mapping[str, int]) -> int:
        """The time if groups keep the given numbers of units; groups that are not named keep all."""
        return self.fixed + sum(steps[kept.get(name, -1)] for name, steps in self.steps.items())

    def left(self, masks: Masks) -> Float[Tensor, ""]:
        """The time under `masks`, differentiable in them; interpolated between whole numbers of units."""
        whole = sum(steps[-1] for name, steps in self.steps.items() if name not in masks)
        device = next(iter(masks.values())).device
        total = torch.tensor(float(self.fixed + whole), dtype=torch.double, device=device)
        for name, mask in masks.items():
            steps, units = self.steps[name], mask.double().sum()
            below = min(int(units.item()), len(steps) - 2)
            total = total + steps[below] + (units - below) * (steps[below + 1] - steps[below])
        return total

    def per_unit(self, name: str) -> float:
        """The average time of one unit of a group, at least a nanosecond."""
        steps = self.steps[name]
        return max(1.0, (steps[-1] - steps[0]) / (len(steps) - 1))


@dataclass(frozen=True)
class PruningSpace:
    """All groups of a model, with the shape of every parameter (tied ones once) in the dense model.

    `tied` maps the name of a parameter that shares another one's tensor to the other one's name. `latency`, the time of
    the groups' units, is set if a budget counts time.
    """

    name: str
    groups: tuple[Group, ...]
    shapes: Mapping[str, tuple[int, ...]]
    tied: Mapping[str, str] = field(default_factory=dict[str, str])
    latency: Latency | None = None

    @cached_property
    def by_name(self) -> dict[str, Group]:
        """The groups by name, in the order of the model."""
        return {group.name: group for group in self.groups}

    @cached_property
    def num_parameters(self) -> int:
        """Parameters of the dense model, embeddings and head included, tied ones counted once."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    @cached_property
    def num_prunable(self) -> int:
        """Parameters of the tensors that the groups are part of, kept ones included."""
        touched = {piece.param for group in self.groups for piece in group.slices}
        return sum(math.prod(self.shapes[param]) for param in touched)

    @cached_property
    def fingerprint(self) -> str:
        """Identifies groups, their places and shapes; a plan refuses to apply to another space."""
        content = {
            "groups": [asdict(group) for group in self.groups],
            "shapes": dict(sorted(self.shapes.items())),
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def ones(self, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """The masks that keep everything."""
        return {group.name: torch.ones(group.size, device=device) for group in self.groups}

    @cached_property
    def _addresses(self) -> dict[str, tuple[tuple[int, tuple[tuple[str, int], ...]], ...]]:
        """For each dimension of every parameter of a group: its size, and (group, positions per unit) of its groups."""
        cuts: dict[tuple[str, int], list[tuple[str, int]]] = {}
        for group in self.groups:
            for piece in group.slices:
                owned = piece.segment.extent // group.size
                cuts.setdefault((piece.param, piece.dim), []).append((group.name, owned))
        return {
            param: tuple((size, tuple(cuts.get((param, dim), ()))) for dim, size in enumerate(self.shapes[param]))
            for param in dict.fromkeys(param for param, _ in cuts)
        }

    def count(self, kept: Mapping[str, int]) -> int:
        """Exact number of parameters if every group keeps the given number of units."""
        gone = {group.name: group.size - kept[group.name] for group in self.groups}
        total = self.num_parameters - self.num_prunable
        for dims in self._addresses.values():
            total += math.prod(size - sum(gone[name] * owned for name, owned in cuts) for size, cuts in dims)
        return total

    def parameters_left(self, masks: Masks) -> Float[Tensor, ""]:
        """Number of parameters of the whole model under `masks`, differentiable in them.

        The sum over all parameters of the product of kept widths, in float64; soft masks count as fractions.
        """
        gone = {group.name: group.size - masks[group.name].double().sum() for group in self.groups}
        device = next(iter(gone.values())).device
        total = torch.tensor(float(self.num_parameters - self.num_prunable), dtype=torch.double, device=device)
        for dims in self._addresses.values():
            widths = [size - sum(gone[name] * owned for name, owned in cuts) for size, cuts in dims]
            total = total + math.prod(widths)
        return total
