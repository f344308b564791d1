"""The five kinds of edit that make a decoder smaller: how they are stored, and whether they fit a space."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tuneprune.errors import PlanMismatch
from tuneprune.structure.space import PruningSpace

EVERYWHERE = "*"
Addition = Literal["biases", "routers", "skip matrices"]
"""Parts that edits can add to a model but no stock class has."""


@dataclass(frozen=True)
class Keep:
    """Keep these units of a group, numbered as in the dense model."""

    group: str
    units: Int[Tensor, " n"]


@dataclass(frozen=True)
class Drop:
    """Remove the whole decoder layer at path `block`."""

    block: str


@dataclass(frozen=True)
class Rotate:
    """Write the residual stream in another orthonormal basis, whose vectors are the columns of `basis`.

    `at` is the path of the norm that reads the stream in this basis, or `*` for one basis in the whole model. The
    function of the model does not change; which units a Keep on the residual stream removes does.
    """

    at: str
    basis: Float[Tensor, "hidden hidden"]

    @cached_property
    def is_orthonormal(self) -> bool:
        """Whether the rotated model computes the same. Cached: the check costs hidden ** 3 multiplications."""
        basis = self.basis.double()
        identity = torch.eye(len(basis), dtype=torch.double)
        return basis.shape == identity.shape and torch.allclose(basis.T @ basis, identity, atol=1e-4)


@dataclass(frozen=True)
class Bias:
    """Add a constant to the output of linear `module`, which gets a bias if it has none (FLAP's compensation)."""

    module: str
    bias: Float[Tensor, " outputs"]


@dataclass(frozen=True)
class Route:
    """Let a router choose, token by token, which `experts` (sets of a group's units) compute.

    Units in no expert are removed. `router` holds the router's weights by name.
    """

    group: str
    experts: Bool[Tensor, "experts units"]
    router: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    top_k: int = 1


Edit = Keep | Drop | Rotate | Bias | Route


def target(edit: Edit) -> str:
    """The name of the group, block, norm or module that the edit changes."""
    match edit:
        case Keep(group=name) | Route(group=name) | Drop(block=name) | Rotate(at=name) | Bias(module=name):
            return name


def tensors_of(edit: Edit) -> dict[str, Tensor]:
    """The tensors that are stored for the edit, by name within it."""
    match edit:
        case Keep(units=units):
            return {"units": units.to(torch.int64)}
        case Drop():
            return {}
        case Rotate(basis=basis):
            return {"basis": basis}
        case Bias(bias=bias):
            return {"bias": bias}
        case Route(experts=experts, router=router):
            return {"experts": experts.to(torch.uint8), **{f"router.{name}": t for name, t in router.items()}}


def to_entry(edit: Edit) -> dict[str, Any]:
    """The entry of the edit in `plan.json`."""
    entry: dict[str, Any] = {"edit": type(edit).__name__.lower(), "target": target(edit)}
    if isinstance(edit, Keep):
        entry["kept"] = len(edit.units)
    if isinstance(edit, Route):
        entry |= {"experts": len(edit.experts), "top_k": edit.top_k}
    return entry


def from_entry(entry: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Edit:
    """The edit that `to_entry` and `tensors_of` stored.

    Raises:
        KeyError, TypeError, ValueError: the entry is damaged, or does not fit its tensors.
    """
    kind, name = str(entry["edit"]), str(entry["target"])
    if kind == "keep":
        if len(tensors["units"]) != entry["kept"]:
            raise ValueError(f"`{name}` should keep {entry['kept']} units, but {len(tensors['units'])} are stored")
        return Keep(name, tensors["units"])
    if kind == "drop":
        return Drop(name)
    if kind == "rotate":
        return Rotate(name, tensors["basis"])
    if kind == "bias":
        return Bias(name, tensors["bias"])
    if kind == "route":
        router = {key.removeprefix("router."): t for key, t in tensors.items() if key.startswith("router.")}
        return Route(name, tensors["experts"].bool(), router, int(entry["top_k"]))
    raise ValueError(f"unknown edit `{kind}` of `{name}`")


def check_edit(edit: Edit, space: PruningSpace) -> None:
    """Refuse an edit that names something the space does not have, or whose tensors do not fit what it names.

    Raises:
        PlanMismatch: with the name.
    """
    name = target(edit)
    if isinstance(edit, Keep | Route | Drop):
        group = space.by_name.get(name)
        if group is None or (group.kind == "block") != isinstance(edit, Drop):
            raise misfit(f"decides on `{name}`, which this space does not have")
        if isinstance(edit, Keep):
            _check_units(edit, group.size)
        if isinstance(edit, Route):
            _check_experts(edit, group.size)
            # A group's units are read from the stream that they are written to.
            _check_router(edit, {space.shapes[piece.param][0] for piece in group.slices if piece.dim == 1})
    elif isinstance(edit, Bias):
        shape = space.shapes.get(f"{name}.weight")
        if shape is None or tuple(edit.bias.shape) != shape[:1]:
            raise misfit(f"adds {edit.bias.numel()} biases to `{name}`, which this model cannot take")
        _check_finite(edit.bias, name)
    else:
        _check_basis(edit, {size for shape in space.shapes.values() for size in shape})


def misfit(fault: str) -> PlanMismatch:
    """The refusal of a plan that fits no model, or not this one."""
    return PlanMismatch(f"The plan {fault}. Make the plan again.")


def _check_basis(edit: Rotate, widths: set[int]) -> None:
    """Check the shape first: whether a basis is orthonormal takes many multiplications."""
    shape = tuple(edit.basis.shape)
    if len(shape) != 2 or shape[0] != shape[1] or shape[0] not in widths:
        raise misfit(f"has a basis at `{edit.at}` of shape {shape}; it must be square, with a width of this model")
    _check_finite(edit.basis, edit.at)
    if not edit.is_orthonormal:
        raise misfit(f"has a basis at `{edit.at}` that is not orthonormal")


def _check_finite(tensor: Tensor, name: str) -> None:
    if not tensor.is_floating_point():
        raise misfit(f"has numbers for `{name}` of type {tensor.dtype}, not floating-point ones")
    if not bool(tensor.float().isfinite().all()):
        raise misfit(f"has numbers that are not finite for `{name}`")


def _check_experts(edit: Route, size: int) -> None:
    experts = edit.experts
    if experts.ndim != 2 or experts.shape[1] != size or not experts.any(1).all():
        raise misfit(f"has experts of `{edit.group}` that do not each hold some of its {size} units")
    if not 1 <= edit.top_k <= len(experts):
        raise misfit(f"routes `{edit.group}` to {edit.top_k} of {len(experts)} experts")


def _check_router(edit: Route, widths: set[int]) -> None:
    """Refuse a router that cannot choose among the experts by an input of one of these widths."""
    router, count = edit.router.get("weight"), len(edit.experts)
    if router is None or len(edit.router) != 1 or router.ndim != 2 or len(router) != count:
        raise misfit(f"needs one row of `weight` for each of {count} experts in the router of `{edit.group}`")
    if router.shape[1] not in widths:
        possible = " or ".join(map(str, sorted(widths)))
        raise misfit(f"has rows of {router.shape[1]} numbers in the router of `{edit.group}` instead of {possible}")
    _check_finite(router, edit.group)


def _check_units(edit: Keep, size: int) -> None:
    """Refuse anything but an ascending list of a group's units, which is what the cut expects."""
    units = edit.units
    is_whole = not (units.is_floating_point() or units.is_complex() or units.dtype == torch.bool)
    if units.ndim != 1 or not is_whole or not len(units):
        raise misfit(f"must keep some units of `{edit.group}`, but has no list of unit numbers")
    if units[0] < 0 or units[-1] >= size or not bool((units[1:] > units[:-1]).all()):
        raise misfit(f"needs ascending units of `{edit.group}` without repetition, from 0 to at most {size - 1}")
