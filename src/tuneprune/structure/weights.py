"""The weights of a model with or without LoRA; no other file knows how PEFT wraps a linear."""

from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tuneprune.structure.space import Group, WeightSlice

ADAPTER = "default"


@dataclass(frozen=True)
class LoraFactors:
    """The factors of one LoRA layer: y = W x + scaling * up (down x)."""

    down: Float[Tensor, "rank inputs"]
    up: Float[Tensor, "outputs rank"]
    scaling: float


def lora_factors(model: nn.Module, module: str) -> LoraFactors | None:
    """The LoRA of the linear at `module`, or None if it has none."""
    layer: Any = model.get_submodule(module)
    if not hasattr(layer, "lora_A") or ADAPTER not in layer.lora_A:
        return None
    return LoraFactors(layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight, layer.scaling[ADAPTER])


def base_module(model: nn.Module, module: str) -> nn.Module:
    """The module itself, or the frozen layer inside its LoRA wrapper."""
    layer: Any = model.get_submodule(module)
    return layer.base_layer if hasattr(layer, "base_layer") else layer


def base_weight(model: nn.Module, param: str) -> nn.Parameter:
    """The stored (for LoRA layers: frozen) tensor behind the dense model's parameter name."""
    module, _, leaf = param.rpartition(".")
    return getattr(base_module(model, module), leaf)


def effective_weight(model: nn.Module, param: str) -> Tensor:
    """The tensor that the forward pass uses: base plus LoRA."""
    module, _, leaf = param.rpartition(".")
    weight = base_weight(model, param)
    factors = lora_factors(model, module) if leaf == "weight" else None
    if factors is None:
        return weight
    return weight + factors.scaling * (factors.up @ factors.down).to(weight.dtype)


def group_norms(model: nn.Module, group: Group) -> Float[Tensor, " units"]:
    """L2 norm of every unit over all its weights, LoRA and biases included."""
    weights = (piece.segment.by_unit(effective_weight(model, piece.param), piece.dim) for piece in group.slices)
    return reduce(torch.add, (weight.float().pow(2).sum(1) for weight in weights)).sqrt()


def lora_entries(model: nn.Module, group: Group) -> list[tuple[Tensor, WeightSlice]]:
    """The LoRA factors that contain the group's units, each with the group's place in it.

    Rows of `up` for producers (dimension 0 of the weight), columns of `down` for consumers (dimension 1).
    """
    entries: list[tuple[Tensor, WeightSlice]] = []
    for piece in group.slices:
        module, _, leaf = piece.param.rpartition(".")
        factors = lora_factors(model, module) if leaf == "weight" else None
        if factors is not None:
            entries.append((factors.up if piece.dim == 0 else factors.down, piece))
    return entries


def update_squares(model: nn.Module, group: Group) -> Float[Tensor, " units"] | None:
    """Summed squares of the update that LoRA adds to every unit's weights; None without LoRA."""
    total: Tensor | None = None
    for piece in group.slices:
        module, _, leaf = piece.param.rpartition(".")
        factors = lora_factors(model, module) if leaf == "weight" else None
        if factors is not None:
            update = (factors.up @ factors.down).float()
            own = factors.scaling**2 * piece.segment.by_unit(update, piece.dim).pow(2).sum(1)
            total = own if total is None else total + own
    return total


def lora_norms(model: nn.Module, group: Group, epsilon: float = 0.0) -> Float[Tensor, " units"] | None:
    """L2 norm of every unit's LoRA entries over all factors; None without LoRA."""
    entries = lora_entries(model, group)
    if not entries:
        return None
    squares = [piece.segment.by_unit(factor, piece.dim).float().pow(2).sum(1) for factor, piece in entries]
    return (torch.stack(squares).sum(0) + epsilon).sqrt()


@torch.no_grad()
def scale_lora(model: nn.Module, group: Group, factor: Float[Tensor, " units"]) -> None:
    """Multiply the LoRA entries of every unit by `factor`, in place."""
    for weights, piece in lora_entries(model, group):
        spread = torch.ones(weights.shape[piece.dim], device=weights.device)
        segment = piece.segment
        spread[segment.start : segment.start + segment.extent] = segment.spread(factor.to(weights.device).float())
        shape = [1] * weights.ndim
        shape[piece.dim] = -1
        weights.mul_(spread.view(shape).to(weights.dtype))
