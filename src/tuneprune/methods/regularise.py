"""Ways to drive LoRA on removed units to zero, so that cutting those units changes nothing (docs/methods/atp.md)."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tuneprune.calibration.subject import Subject
from tuneprune.structure.space import Masks, PruningSpace
from tuneprune.structure.weights import lora_norms, scale_lora, update_squares


def group_lasso(model: PreTrainedModel, space: PruningSpace, masks: Masks, epsilon: float = 1e-8) -> Tensor | None:
    """Mean over groups of the summed LoRA norms of removed units: ATP's regulariser. None without LoRA.

    Differs from the paper-era code: the norm of a unit is joint over all factors it couples (as in its second version).
    """
    terms = []
    for group in space.groups:
        norms = lora_norms(model, group, epsilon)
        if norms is not None:
            terms.append(((1 - masks[group.name].to(norms.device)) * norms).sum())
    return torch.stack(terms).mean() if terms else None


@torch.no_grad()
def proximal_step(model: PreTrainedModel, space: PruningSpace, masks: Masks, strength: float) -> None:
    """Shrink every removed unit's LoRA norm by `strength` times its group's share of all removals, not below zero.

    The proximal operator of the group lasso, as in ATP's second version.
    """
    removed = {name: float((mask == 0).sum()) for name, mask in masks.items()}
    total = sum(removed.values())
    if not total:
        return
    for group in space.groups:
        norms = lora_norms(model, group, 1e-20)
        if norms is None or not removed[group.name]:
            continue
        threshold = strength * removed[group.name] / total
        shrunk = (norms - threshold).clamp(min=0) / norms
        scale_lora(model, group, torch.where(masks[group.name].to(norms.device) == 0, shrunk, torch.ones_like(norms)))


def proximal_strength(weight: float, progress: float, learning_rate: float) -> float:
    """Exponential ramp from 0 at the start (`progress` 0) to weight * learning_rate at the end (`progress` 1)."""
    return weight * (math.exp(progress) - 1) / (math.e - 1) * learning_rate


@torch.no_grad()
def linear_decay(model: PreTrainedModel, space: PruningSpace, masks: Masks, step: int, steps: int) -> None:
    """Multiply removed units' LoRA by (T - t - 1) / (T - t): zero after step T - 1 (HESSO)."""
    factor = max(0.0, (steps - step - 1) / (steps - step)) if step < steps else 0.0
    for group in space.groups:
        mask = masks[group.name]
        scale_lora(model, group, torch.where(mask == 0, torch.full_like(mask, factor), torch.ones_like(mask)))


@torch.no_grad()
def lora_residue(model: PreTrainedModel, space: PruningSpace, masks: Masks) -> dict[str, float]:
    """LoRA's update of removed units' weights: its L2 norm, and that norm relative to the update of all units."""
    removed = everything = 0.0
    for group in space.groups:
        squares = update_squares(model, group)
        if squares is not None:
            squares = squares.double()
            everything += squares.sum().item()
            removed += (squares * (masks[group.name].to(squares.device) == 0)).sum().item()
    return {
        "before_projection": math.sqrt(removed),
        "relative": math.sqrt(removed / everything) if everything else 0.0,
    }


def project(model: PreTrainedModel, space: PruningSpace, masks: Masks) -> None:
    """Set LoRA on removed units to exactly zero."""
    for group in space.groups:
        scale_lora(model, group, masks[group.name])


@dataclass(frozen=True)
class Regulariser:
    """One of these ways, over a whole run: a term of the loss, or a change after every optimiser step."""

    subject: Subject
    kind: Literal["lasso", "proximal", "linear_decay", "none"]
    lasso_weights: tuple[float, float]
    """While decisions are revised, and afterwards."""
    proximal_weight: float
    decay_share: float
    """Share of the frozen phase until LoRA is zero."""

    def penalty(self, masks: Masks, *, frozen: bool) -> Tensor | None:
        """The weighted group lasso, if that is the regulariser."""
        if self.kind != "lasso":
            return None
        lasso = group_lasso(self.subject.model, self.subject.space, masks)
        return None if lasso is None else self.lasso_weights[frozen] * lasso

    def after_step(self, masks: Masks, step: int, frozen_at: int, learning_rate: float) -> None:
        """The proximal step, or the linear decay once the decision is frozen (`frozen_at` not negative)."""
        model, space, total = self.subject.model, self.subject.space, self.subject.total_steps
        if self.kind == "proximal":
            proximal_step(
                model, space, masks, proximal_strength(self.proximal_weight, (step + 1) / total, learning_rate)
            )
        elif self.kind == "linear_decay" and frozen_at >= 0:
            steps = max(1, round(self.decay_share * (total - frozen_at)))
            linear_decay(model, space, masks, step - frozen_at, steps)
