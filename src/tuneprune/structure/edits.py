"""The five ways to make a decoder smaller; a plan is a list of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Tensors = Mapping[str, Tensor]
EVERYWHERE = "*"
Addition = Literal["biases", "routers", "skip matrices"]
"""What edits can put into a model, and a stock class has no place for."""


@dataclass(frozen=True)
class Keep:
    """Keep these units of a group, counted in the dense layout."""

    group: str
    units: Int[Tensor, " n"]


@dataclass(frozen=True)
class Drop:
    """Remove the whole decoder layer at path `block`."""

    block: str


@dataclass(frozen=True)
class Rotate:
    """Write the residual stream in another orthonormal basis, whose vectors are the columns of `basis`.

    `at` is the path of the norm that reads the stream in this basis, or `*` for one basis of the whole model. The
    function of the model does not change; which units a Keep on the residual stream removes does.
    """

    at: str
    basis: Float[Tensor, "hidden hidden"]

    @cached_property
    def is_orthonormal(self) -> bool:
        """Whether the rotated model computes the same. Looked at once: it costs hidden ** 3 multiplications."""
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
    """What the edit is about: a group, block, norm or module."""
    if isinstance(edit, Keep | Route):
        return edit.group
    if isinstance(edit, Drop):
        return edit.block
    return edit.at if isinstance(edit, Rotate) else edit.module


def tensors_of(edit: Edit) -> dict[str, Tensor]:
    """What the edit stores as tensors, by name within the edit."""
    if isinstance(edit, Keep):
        return {"units": edit.units.to(torch.int64)}
    if isinstance(edit, Rotate):
        return {"basis": edit.basis}
    if isinstance(edit, Bias):
        return {"bias": edit.bias}
    if isinstance(edit, Route):
        return {"experts": edit.experts.to(torch.uint8), **{f"router.{name}": t for name, t in edit.router.items()}}
    return {}


def describe(edit: Edit) -> dict[str, Any]:
    """What `plan.json` says of the edit."""
    entry: dict[str, Any] = {"edit": type(edit).__name__.lower(), "target": target(edit)}
    if isinstance(edit, Keep):
        entry["kept"] = len(edit.units)
    if isinstance(edit, Route):
        entry |= {"experts": len(edit.experts), "top_k": edit.top_k}
    return entry


def read(entry: Mapping[str, Any], tensors: Tensors) -> Edit:
    """The edit that `describe` and `tensors_of` stored.

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
