"""APT: prune by the salience of activations while tuning, with a bonus for units that produce outliers.

Every tuning step shows how strongly each unit acts and how strongly the loss reacts to it; the product of both is the
unit's salience. The heaviness of the tails of what a unit produces is added, since few but large values matter too. The
mask of a dropped unit falls to zero gradually.

Paper: https://arxiv.org/abs/2401.12200 (symbols, equations, differences: docs/methods/apt.md). Compared with the
authors' code and with equations of the paper as quoted elsewhere, not with the paper's full text.

Changed: only the pruning half; LoRA's rank stays fixed, without self-distillation. Heads are removed as whole KV
groups, the two terms of the salience are brought to one scale before they are added, kurtosis is taken over all
positions, and a dropped unit does not come back.
"""

from collections.abc import Generator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor

from tuneprune.budget import Budget
from tuneprune.calibration.scores import unit_costs
from tuneprune.calibration.subject import Subject
from tuneprune.errors import TunePruneError
from tuneprune.methods.base import Method, Metrics, Search, churn
from tuneprune.methods.regularise import project
from tuneprune.methods.removal import cubic, scheduled_budget, shrink, starts_before_it_ends
from tuneprune.structure.space import Gate, Group, Masks
from tuneprune.structure.weights import base_weight


class Apt(Method):
    """Drop units of low salience, heavy tails counted, while LoRA tunes."""

    name = "apt"
    paper = "https://arxiv.org/abs/2401.12200"
    spaces = ("width",)
    decides_by_lora = True

    momentum: float = Field(default=0.85, ge=0, lt=1, description="how slowly the salience follows the batches")
    outlier_weight: float = Field(default=1.0, ge=0, description="weight of the outlier term relative to the salience")
    start_share: float = Field(default=0.1, ge=0, lt=1, description="share of the steps before the first removal")
    end_share: float = Field(default=0.5, gt=0, le=1, description="share of the steps until the last units are dropped")
    every: int = Field(default=10, ge=1, description="steps between two decisions")
    fall_share: float = Field(
        default=0.1, ge=0, lt=1, description="share of the steps in which the mask of a dropped unit falls to zero"
    )

    _in_order = model_validator(mode="after")(starts_before_it_ends)

    def begin(self, subject: Subject, budget: Budget) -> Search:
        """Start from the whole model."""
        return AptSearch(self, subject, budget)


class Activity:
    """Sums over one group's activation in a step, per feature: of |h|, h to h^4, and |dL/dh|, and a count.

    The activation is the input of the linear behind the units; where norms join the heads, queries and keys have gates
    of their own, which are ignored. The hooks reduce it, so nothing of the size of an activation is kept.
    """

    def __init__(self, group: Group, device: torch.device) -> None:
        self.gate: Gate = next(gate for gate in group.gates if gate.side == "input")
        self.own = replace(self.gate.segment, start=0)  # where the units are in the sums
        self.clear(device)

    def clear(self, device: torch.device) -> None:
        """Start a new step."""
        extent = self.gate.segment.extent
        self.magnitude, self.slope = (torch.zeros(extent, device=device) for _ in range(2))
        self.powers = torch.zeros(4, extent, device=device, dtype=torch.double)  # central moments cancel
        self.count = torch.zeros((), device=device)

    def note(self, _: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """A forward pre-hook: add the activation, and its gradient during backward.

        Activation checkpointing runs it twice, which does not change the mean, and backward reaches one of the two.
        """
        segment = self.gate.segment
        hidden = inputs[0].narrow(-1, segment.start, segment.extent)
        if not hidden.requires_grad:
            return
        flat = hidden.detach().float().reshape(-1, segment.extent)
        self.magnitude += flat.abs().sum(0)
        self.powers += torch.stack([flat.pow(power).sum(0, dtype=torch.double) for power in (1, 2, 3, 4)])
        self.count += len(flat)
        inputs[0].register_hook(self._take)

    def _take(self, gradient: Tensor) -> None:
        part = gradient.detach().narrow(-1, self.gate.segment.start, self.gate.segment.extent)
        self.slope += part.float().abs().reshape(-1, self.gate.segment.extent).sum(0)


class AptSearch(Search):
    """One APT run: the moving salience, the decision in force and how far its masks have fallen."""

    def __init__(self, options: Apt, subject: Subject, budget: Budget) -> None:
        self.attach(options, subject, budget)
        self.options = options
        self.activities = {group.name: Activity(group, self.device) for group in subject.space.groups}
        total = subject.total_steps
        self.fall_steps = max(1, round(options.fall_share * total))
        self.end = max(1, min(round(options.end_share * total), total - self.fall_steps))
        self.start = min(round(options.start_share * total), self.end - 1)
        self.cut_at = self.end + self.fall_steps
        self._weights = {name: weight_moments(subject, activity) for name, activity in self.activities.items()}
        self._salience: dict[str, Tensor] | None = None
        self._soft: Masks = self._masks

    @property
    def phase(self) -> str:
        """`control` until the last unit has fallen to zero, then `frozen`."""
        is_over = self.frozen and all(torch.equal(self._soft[name], mask) for name, mask in self._masks.items())
        return "frozen" if is_over else "control"

    def before_step(self, step: int, /) -> Metrics:
        """Decide every few steps, and let the masks of dropped units fall."""
        before = self._masks
        is_due = step > self.start and (step - self.start) % self.options.every == 0
        if self._salience is not None and not self.frozen and (is_due or step >= self.end):
            self._decide(1.0 if step >= self.end else cubic((step - self.start) / (self.end - self.start)))
        self._soft = {name: fallen(soft, self._masks[name], self.fall_steps) for name, soft in self._soft.items()}
        for activity in self.activities.values():
            activity.clear(self.device)
        return {"mask_churn": churn(before, self._masks)}

    @contextmanager
    def _observed(self) -> Generator[None, None, None]:
        with ExitStack() as hooks:
            for activity in self.activities.values():  # before the gates, which act on what is observed here
                module = self.subject.model.get_submodule(activity.gate.module)
                hooks.callback(module.register_forward_pre_hook(activity.note).remove)
            hooks.enter_context(self.gates(self._soft))
            yield

    def context(self) -> AbstractContextManager[None]:
        """The falling masks, on weights and LoRA alike; observed until everything is decided."""
        return self.gates(self._soft) if self.frozen else self._observed()

    def after_backward(self) -> None:
        """Mix this step's salience into the moving average."""
        if self.frozen:
            return
        fresh = self._fresh()
        if not self.subject.runtime.accepts(
            {}, fresh.values(), "importance"
        ):  # fourth powers may overflow where the loss does not
            return
        if self._salience is None:
            self._salience = {name: torch.zeros_like(value) for name, value in fresh.items()}
        momentum = self.options.momentum
        for name, value in fresh.items():
            self._salience[name].mul_(momentum).add_(value, alpha=1 - momentum)

    def after_step(self, _: float, /) -> None:
        """Set LoRA to zero on units that have fallen to zero."""
        reached = {name: (soft > 0).float() for name, soft in self._soft.items()}
        project(self.subject.model, self.subject.space, reached)

    def freeze(self) -> None:
        """Decide on the whole budget, where the run was too short for the schedule.

        Raises:
            TunePruneError: no step was taken, so nothing was observed.
        """
        self._decide(1.0)

    def state_dict(self) -> dict[str, Any]:
        """Salience, decision and soft masks; the sums of a step are not needed after it."""
        return {
            "salience": self._salience,
            "masks": dict(self._masks),
            "soft": dict(self._soft),
            "decided": self.frozen,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`."""
        if state["salience"] is not None:
            self._salience = self.on_device(state["salience"])
        self._masks, self._soft = self.on_device(state["masks"]), self.on_device(state["soft"])
        self.frozen = state["decided"]

    def _decide(self, done: float) -> None:
        """Keep the units of highest salience per parameter, out of those that are kept now."""
        if self._salience is None:
            raise TunePruneError("`apt` saw no finite gradient to decide by. Lower tune.learning_rate.")
        costs = unit_costs(self.subject.space)
        density = {name: value.double() / costs[name] for name, value in self._salience.items()}
        self._masks = shrink(self._masks, density, self.subject.space, scheduled_budget(self.budget, done))
        self.frozen = done >= 1.0

    def _fresh(self) -> dict[str, Tensor]:
        """This step's salience of every unit, both terms with mean 1 over the units of the model."""
        salience: dict[str, Tensor] = {}
        outliers: dict[str, Tensor] = {}
        for name, activity in self.activities.items():
            self.subject.runtime.average([activity.magnitude, activity.slope, activity.powers, activity.count])
            count = activity.count.clamp(min=1)
            salience[name] = activity.own.by_unit(activity.slope * activity.magnitude / count).sum(1)
            tails = kurtosis(activity.powers / count * self._weights[name])
            outliers[name] = activity.own.by_unit(tails.sqrt()).mean(1).float()
        scales = [torch.cat(list(term.values())).mean().clamp(min=1e-30) for term in (salience, outliers)]
        weight = self.options.outlier_weight
        return {name: value / scales[0] + weight * outliers[name] / scales[1] for name, value in salience.items()}


def fallen(soft: Tensor, hard: Tensor, steps: int) -> Tensor:
    """Soft masks one step nearer to the hard ones, on a line of `steps` steps that ends exactly at zero."""
    lower = soft - 1 / steps
    return torch.maximum(torch.where(lower < 0.5 / steps, 0.0, lower), hard)


@torch.no_grad()
def weight_moments(subject: Subject, activity: Activity) -> Tensor:
    """Means of w to w^4 over each column of the frozen matrix that reads the gated activation: (4, features)."""
    weight = base_weight(subject.model, f"{activity.gate.module}.weight")
    columns = weight.narrow(1, activity.gate.segment.start, activity.gate.segment.extent).double()
    return torch.stack([columns.pow(power).mean(0) for power in (1, 2, 3, 4)])


def kurtosis(moments: Tensor) -> Tensor:
    """Kurtosis from the raw moments 1 to 4 along the first dimension; 0 for a constant."""
    first, second, third, fourth = moments
    variance = second - first.pow(2)
    central = fourth - 4 * first * third + 6 * first.pow(2) * second - 3 * first.pow(4)
    return torch.where(variance > 1e-20, central / variance.clamp(min=1e-20).pow(2), 0.0).clamp(min=0)
