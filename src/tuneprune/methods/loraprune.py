"""LoRAPrune: prune while tuning, by gradients of the frozen weights that LoRA's own gradients stand in for.

After every backward pass the gradient of each frozen matrix is estimated from the gradients of its LoRA factors, so
that importance costs no more memory than LoRA. A moving average of the importance decides every few steps which units
are switched off next, ever more of them along a cubic schedule.

Paper: https://arxiv.org/abs/2305.18403 (symbols, equations, differences: docs/methods/loraprune.md).

Changed: heads are removed as whole KV groups, the schedule counts parameters instead of units, and protected layers
lose units if nothing else is left to reach the budget. `revisable` and the scope `global` go beyond the paper.
"""

from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from transformers import PreTrainedModel

from tuneprune.budget import Budget, allocate, fractional_ranks
from tuneprune.calibration.scores import unit_costs
from tuneprune.calibration.subject import Subject
from tuneprune.errors import TunePruneError
from tuneprune.methods.base import Method, Metrics, Search, churn
from tuneprune.methods.protection import Layers, end_layers
from tuneprune.methods.regularise import project
from tuneprune.methods.removal import cubic, scheduled_budget, shrink, starts_before_it_ends
from tuneprune.structure.space import Group
from tuneprune.structure.weights import LoraFactors, effective_weight, lora_factors


class LoraPrune(Method):
    """Drop units by an importance that LoRA's own gradients give, while LoRA tunes."""

    name = "loraprune"
    paper = "https://arxiv.org/abs/2305.18403"
    spaces = ("width", "head_dim", "disp")
    decides_by_lora = True

    momentum: float = Field(default=0.9, ge=0, lt=1, description="how slowly the importance follows the weights")
    start_share: float = Field(default=0.1, ge=0, lt=1, description="share of the steps before the first removal")
    end_share: float = Field(default=0.9, gt=0, le=1, description="share of the steps until the budget is met")
    every: int = Field(default=10, ge=1, description="steps between two decisions")
    scope: Literal["local", "global"] = Field(
        default="local",
        description="`local` takes the same share from every group; `global` ranks importance per parameter over all",
    )
    revisable: bool = Field(
        default=False,
        description="removed units may come back: LoRA stays open on them until the budget is met",
    )
    protect_first: Layers = Field(
        default=0.1,
        description="layers that lose units only when no others can, counted from the first: a share of all below 1, or"
        " a number of layers from 1 on",
    )
    protect_last: Layers = Field(default=1, description="the same, counted from the last layer")

    _in_order = model_validator(mode="after")(starts_before_it_ends)

    def begin(self, subject: Subject, budget: Budget) -> Search:
        """Start from the whole model."""
        return LoraPruneSearch(self, subject, budget)


class LoraPruneSearch(Search):
    """One LoRAPrune run: the moving importance and the decision in force."""

    def __init__(self, options: LoraPrune, subject: Subject, budget: Budget) -> None:
        self.attach(options, subject, budget)
        self.options = options
        self.start = round(options.start_share * subject.total_steps)
        self.cut_at = self.end = max(1, round(options.end_share * subject.total_steps))
        self._costs = unit_costs(subject.space)
        self._importance: dict[str, Tensor] | None = None

    def before_step(self, step: int, /) -> Metrics:
        """Decide every few steps of the schedule, and for the last time at its end."""
        if self.frozen or self._importance is None:
            return {}
        before = self._masks
        if step >= self.end:
            self._decide(1.0)
        elif step > self.start and (step - self.start) % self.options.every == 0:
            self._decide(cubic((step - self.start) / (self.end - self.start)))
        else:
            return {}
        return {"mask_churn": churn(before, self._masks)}

    def context(self) -> AbstractContextManager[None]:
        """Masks on weights and LoRA alike; LoRA stays open while removed units may come back."""
        return self.gates(self._masks, "open" if self.options.revisable and not self.frozen else "masked")

    def after_backward(self) -> None:
        """Mix this step's importance into the moving average, until the final decision."""
        if self.frozen:
            return
        momentum, is_local = self.options.momentum, self.options.scope == "local"
        with torch.no_grad():
            model, groups = self.subject.model, self.subject.space.groups
            fresh = {group.name: importance(model, group, normalised=is_local) for group in groups}
            if not self.subject.runtime.accepts(
                {}, fresh.values(), "importance"
            ):  # a finite gradient times a finite weight may overflow
                return
            if self._importance is None:
                self._importance = {name: torch.zeros_like(mask) for name, mask in self._masks.items()}
            for name, value in fresh.items():
                self._importance[name].mul_(momentum).add_(value, alpha=1 - momentum)

    def after_step(self, _: float, /) -> None:
        """Set LoRA to zero on units that are removed for good."""
        if self.frozen or not self.options.revisable:
            project(self.subject.model, self.subject.space, self._masks)

    def freeze(self) -> None:
        """Decide on the whole budget, where the schedule ends with the run.

        Raises:
            TunePruneError: no step was taken, so no gradient was seen.
        """
        self._decide(1.0)

    def state_dict(self) -> dict[str, Any]:
        """Importance, the decision in force, and whether it is the last."""
        return {"importance": self._importance, "masks": self._masks, "frozen": self.frozen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`."""
        if state["importance"] is not None:
            self._importance = self.on_device(state["importance"])
        self._masks = self.on_device(state["masks"])
        self.frozen = state["frozen"]

    def _decide(self, done: float) -> None:
        """Keep the most important units within what the schedule allows."""
        space, budget = self.subject.space, scheduled_budget(self.budget, done)
        scores = self._ranking()
        if self.options.revisable:
            self._masks = self.on_device(allocate(scores, space, budget))
        else:
            self._masks = shrink(self._masks, scores, space, budget)
        self.frozen = done >= 1.0

    def _ranking(self) -> dict[str, Tensor]:
        """Scores that one list can rank, with those of protected layers above all others."""
        if self._importance is None:
            raise TunePruneError("`loraprune` saw no finite gradient to decide by. Lower tune.learning_rate.")
        space, options = self.subject.space, self.options
        spared = end_layers(space, options.protect_first, options.protect_last, part_counts=False)
        known = {name: value.double().cpu() for name, value in self._importance.items()}
        if not options.revisable:  # removed units rank last
            known = {name: torch.where(self._masks[name].cpu() > 0, value, -1.0) for name, value in known.items()}
        scores = {
            name: fractional_ranks(value) if options.scope == "local" else value / self._costs[name]
            for name, value in known.items()
        }
        above = max(float(score.max()) for score in scores.values()) + 1
        return {group.name: scores[group.name] + (above if group.layer in spared else 0.0) for group in space.groups}


def importance(model: PreTrainedModel, group: Group, *, normalised: bool) -> Tensor:
    """Sum of |estimated gradient x effective weight| over every unit's entries.

    `normalised`: each matrix's contribution is divided by its own L2 norm over the units. Biases and norms have no
    LoRA and do not count.
    """
    total = torch.zeros(group.size, device=model.device)
    products: dict[str, Tensor | None] = {}
    for piece in group.slices:
        if piece.param not in products:  # several slices of a group may lie in one packed matrix
            products[piece.param] = _products(model, piece.param)
        product = products[piece.param]
        if product is not None:
            share = piece.segment.by_unit(product, piece.dim).sum(1)
            total += share / share.norm().clamp(min=1e-30) if normalised else share
    return total


def estimated_gradient(factors: LoraFactors) -> Tensor | None:
    """The surrogate g_B A + B g_A - g_B g_A of the frozen matrix's gradient; None before any backward pass."""
    up, down = factors.up.grad, factors.down.grad
    return None if up is None or down is None else up @ (factors.down - down) + factors.up @ down


def _products(model: PreTrainedModel, param: str) -> Tensor | None:
    module, _, leaf = param.rpartition(".")
    factors = lora_factors(model, module) if leaf == "weight" else None
    gradient = None if factors is None else estimated_gradient(factors)
    return None if gradient is None else (gradient * effective_weight(model, param).float()).abs()
