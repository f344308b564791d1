"""HESSO: the hybrid structured sparse optimiser of Only-Train-Once, on a model that LoRA tunes.

The pruning phase has periods; at the start of each the units of lowest saliency are marked. During the period they
still train, but their whole contribution, frozen weights and LoRA, falls along a straight line to exact zero, so that
what they have learned can move to other units. The corrective cycle (CRIC) first tests on the same line whether they
are redundant.

Paper: https://arxiv.org/abs/2409.09085 (symbols, equations, differences: docs/methods/hesso.md).

Changed: the target counts parameters instead of groups, LoRA is tuned instead of all weights, units fall through a gate
on their activation instead of by shrinking weights, and saliency is measured on a calibration batch.
"""

from contextlib import AbstractContextManager
from typing import Any, ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor

from tuneprune.budget import Budget, allocate
from tuneprune.calibration.gradients import UnitGradients, refuse_without_gradients, unit_gradients
from tuneprune.calibration.subject import Subject
from tuneprune.methods.base import Method, Metrics, Search, churn
from tuneprune.methods.regularise import project
from tuneprune.methods.removal import scheduled_budget, shrink, starts_before_it_ends
from tuneprune.structure.masks import Gates
from tuneprune.structure.space import Masks
from tuneprune.structure.weights import base_weight

PROBES = (0.25, 0.5, 0.75)


class Hesso(Method):
    """Let redundant units fall to zero period by period while the rest tunes."""

    name = "hesso"
    paper = "https://arxiv.org/abs/2409.09085"
    spaces = ("width", "head_dim", "disp")
    needs_weight_gradients = True
    presets: ClassVar = {"hesso-cric": {"corrective": True}}

    start_share: float = Field(default=0.1, ge=0, lt=1, description="share of the steps before the first period")
    end_share: float = Field(default=0.5, gt=0, le=1, description="share of the steps until everything marked is zero")
    periods: int = Field(default=10, ge=1, description="periods with an equal part of the removals each")
    corrective: bool = Field(
        default=False,
        description="decide what is redundant before the first period, by saliencies probed on the way to zero (CRIC)",
    )
    max_cycles: int = Field(default=10, ge=1, description="most corrective cycles; each takes three backward passes")

    _in_order = model_validator(mode="after")(starts_before_it_ends)

    def begin(self, subject: Subject, budget: Budget) -> Search:
        """Start from the whole model.

        Raises:
            UnsupportedModel: a weight that has no gradient, because it is stored quantised.
        """
        params = {piece.param for group in subject.space.groups for piece in group.slices}
        refuse_without_gradients({param: base_weight(subject.model, param) for param in sorted(params)})
        return HessoSearch(self, subject, budget)


class HessoSearch(Search):
    """One HESSO run: the units that are removed or falling, and how far they have fallen."""

    def __init__(self, options: Hesso, subject: Subject, budget: Budget) -> None:
        self.attach(options, subject, budget)
        self.options = options
        self.bounds = period_bounds(options, subject.total_steps)
        self.cut_at = self.bounds[-1]
        self.step, self.marked = 0, 0
        self._fixed: dict[str, Tensor] | None = None
        self._gone: Masks = self._masks

    @property
    def phase(self) -> str:
        """`control` until everything marked is zero, then `frozen`."""
        return "control" if self.step < self.bounds[-1] else "frozen"

    def before_step(self, step: int, /) -> Metrics:
        """Mark the next units at the start of a period."""
        self.step = step
        if self.frozen or step < self.bounds[self.marked]:
            return {}
        before = self._masks
        self._mark(self.marked + 1)
        return {"mask_churn": churn(before, self._masks)}

    def context(self) -> AbstractContextManager[None]:
        """Removed units at zero and falling ones on their line, LoRA included."""
        return self.gates(self.soft_masks(self.step))

    def soft_masks(self, step: int) -> dict[str, Tensor]:
        """The gates of a step: (T - t) / T for falling units in step t of a period of T steps."""
        share = 0.0
        if self.marked > 0 and step < self.bounds[self.marked]:
            start, end = self.bounds[self.marked - 1], self.bounds[self.marked]
            share = (end - step) / (end - start)
        return {name: mask + share * (self._gone[name] - mask) for name, mask in self._masks.items()}

    def after_step(self, _: float, /) -> None:
        """Set LoRA to zero on units that have reached zero."""
        reached = {name: (mask > 0).float() for name, mask in self.soft_masks(self.step + 1).items()}
        project(self.subject.model, self.subject.space, reached)

    def freeze(self) -> None:
        """Mark the units of all periods that are left."""
        self._mark(len(self.bounds) - 1)

    def state_dict(self) -> dict[str, Any]:
        """Period, corrected saliencies, removed and marked units; how far these have fallen follows from the step."""
        return {
            "step": self.step,
            "marked": self.marked,
            "fixed": self._fixed,
            "gone": dict(self._gone),
            "masks": dict(self._masks),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`."""
        self.step, self.marked, self._fixed = state["step"], state["marked"], state["fixed"]
        self._gone, self._masks = self.on_device(state["gone"]), self.on_device(state["masks"])
        self.frozen = self.marked == len(self.bounds) - 1

    def _mark(self, period: int) -> None:
        """Begin a period, counted from 1: its share of the removals starts to fall."""
        space, budget = self.subject.space, scheduled_budget(self.budget, period / (len(self.bounds) - 1))
        if self._fixed is not None:
            scores = self._fixed
        elif self.options.corrective:
            scores = self._fixed = corrected_saliency(self.subject, self.budget, self.options.max_cycles)
        else:
            with self.gates(self._masks):
                scores = saliency(unit_gradients(self.subject))
        self._gone, self.marked, self.frozen = self._masks, period, period == len(self.bounds) - 1
        self._masks = shrink(self._masks, scores, space, budget)


def period_bounds(options: Hesso, steps: int) -> list[int]:
    """The steps at which periods begin, and the one after the last; a period has at least one step."""
    start = min(round(options.start_share * steps), steps - 1)
    end = min(steps, max(start + 1, round(options.end_share * steps)))
    periods = min(options.periods, end - start)
    return [start + round(index * (end - start) / periods) for index in range(periods + 1)]


def saliency(sums: UnitGradients) -> dict[str, Tensor]:
    """HESSO's score of every unit: five saliencies, each over its L2 norm over all units, weighted 0.2 each.

    The norm of w, the mean of |w|, 1 + cos(w, g), |<w, g>| and <w, g>^2 / 2.
    """
    total = {name: torch.zeros_like(value) for name, value in sums.inner.items()}
    parts: list[dict[str, Tensor]] = [{} for _ in range(5)]
    for name, inner in sums.inner.items():
        norm = sums.weight_squares[name].sqrt()
        cosine = inner / (norm * sums.gradient_squares[name].sqrt()).clamp(min=1e-30)
        values = (norm, sums.weight_means[name], 1 + cosine, inner.abs(), 0.5 * inner.pow(2))
        for part, value in zip(parts, values, strict=True):
            part[name] = value
    for part in parts:
        size = torch.cat(list(part.values())).norm().clamp(min=1e-30)
        total = {name: total[name] + 0.2 * value / size for name, value in part.items()}
    return total


def probed_saliency(subject: Subject, gates: Gates, violating: Masks, fallen: float) -> dict[str, Tensor]:
    """Saliency of the whole units with the gradient where the violating ones have fallen by the share `fallen`.

    A gate c on a unit scales its inner product of weight and gradient by c; dividing by c undoes that.
    """
    level = {name: 1 - fallen * mask for name, mask in violating.items()}
    with gates({name: value.to(subject.model.device) for name, value in level.items()}):
        sums = unit_gradients(subject)
    for name, value in level.items():
        sums.inner[name] /= value
        sums.gradient_squares[name] /= value.pow(2)
    return saliency(sums)


def corrected_saliency(subject: Subject, budget: Budget, max_cycles: int) -> dict[str, Tensor]:
    """Saliency in which every unit that was ever found redundant has its mean over the way to zero (CRIC).

    A cycle probes the violating units, which are those newly found redundant, and ranks again. It ends when there are
    no new ones.
    """
    gates = Gates(subject.model, subject.space)
    first = saliency(unit_gradients(subject))
    scores = first
    known = {name: torch.zeros_like(value) for name, value in first.items()}
    for _ in range(max_cycles):
        kept = allocate(scores, subject.space, budget)
        violating = {name: (1 - kept[name].double()) * (1 - known[name]) for name in known}
        if not any(mask.any() for mask in violating.values()):
            break
        points = [first, *(probed_saliency(subject, gates, violating, fallen) for fallen in PROBES)]
        mean = {name: torch.stack([point[name] for point in points]).mean(0) for name in first}
        scores = {name: torch.where(violating[name] > 0, mean[name], score) for name, score in scores.items()}
        known = {name: known[name] + violating[name] for name in known}
    return scores
