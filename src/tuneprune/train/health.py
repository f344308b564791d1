"""Bad numbers of a tuning: non-finite values are counted, reported with their records, and never reach a weight."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tuneprune.calibration.finite import WEIGHT_LIMIT, stays_in_range

EXAMPLES, RECORDS = 5, 10
"""Bad events, and records of each, that are kept for the run's record; the log has all."""
TUNING = frozenset({"loss", "penalty", "gradient", "update"})
"""Kinds of bad tuning steps; any other kind is a batch that a method left out."""


@dataclass
class Health:
    """Counts steps and batches with non-finite numbers, and tells when there are too many in a row."""

    limit: int
    step: int = 0
    """The current step, counted from 1; 0 before the first."""
    skipped: int = 0
    """Tuning steps that were not taken."""
    counts: Counter[str] = field(default_factory=Counter[str])
    """Bad events by kind."""
    in_a_row: Counter[str] = field(default_factory=Counter[str])
    """Bad events since the last good one of the same group: `step` for tuning steps, else the kind."""
    first: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    """The first few bad events: step, kind, and records."""
    last: dict[str, Any] = field(default_factory=dict[str, Any])
    """Loss, gradient norm and learning rate of the newest step."""
    latest: dict[str, Any] = field(default_factory=dict[str, Any])
    """The newest bad event."""
    new: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    """Bad events that are not logged yet: `what`, and the records of the `batch`."""

    def good(self, kind: str) -> None:
        """Note an event of this kind with finite numbers."""
        self.in_a_row[_group(kind)] = 0

    def bad(self, what: str, records: Sequence[str]) -> None:
        """Note a value that is not finite: `what` starts with its kind; `records` are the places of its records."""
        kind = what.partition(" ")[0]
        self.counts[kind] += 1
        self.in_a_row[_group(kind)] += 1
        self.skipped += kind in TUNING
        event = {"what": what, "batch": list(records)}
        self.latest = {"step": self.step, **event}
        self.new.append(event)
        if len(self.first) < EXAMPLES:
            self.first.append(self.latest | {"batch": list(records[:RECORDS])})

    def take_new(self) -> list[dict[str, Any]]:
        """The bad events since the last call."""
        taken, self.new = self.new, []
        return taken

    @property
    def has_diverged(self) -> bool:
        """Whether too many of one group in a row were bad."""
        return max(self.in_a_row.values(), default=0) >= self.limit

    def reset_in_a_row(self) -> None:
        """Count from zero again, so that a resumed run has as many tries again."""
        self.in_a_row.clear()

    def summary(self) -> dict[str, Any]:
        """The part of the run's record about bad numbers."""
        return {"bad_numbers": dict(self.counts), "bad_examples": self.first}

    def diagnosis(self, losses: Mapping[str, float], *, autocast: bool) -> str:
        """A message with what happened, the likely cause, and what to do.

        Args:
            losses: of the newest bad batch without autocast and masks: `base` without LoRA, `tuned` with it or with
                the tuned weights; empty if there is no such batch.
            autocast: whether the run computes in lower precision.
        """
        group, count = self.in_a_row.most_common(1)[0]
        counted = "steps" if group == "step" else f"{group} batches"
        loss, norm, rate = (self.last.get(name, math.nan) for name in ("loss", "grad_norm", "learning_rate"))
        return (
            f"{count} {counted} in a row had numbers that are not finite, the last one in its {self.latest['what']}"
            f" (loss {loss:.4g}, gradient norm {norm:.4g}, learning rate {rate:.2g}, precision"
            f" {'bf16' if autocast else 'as stored'}; records {_some(self.latest['batch'])})."
            f" {self._cause(losses, autocast=autocast)}"
            " The weights of the last good step are saved: --resume continues with the data that follows. The settings"
            " of a run cannot change, so a changed run file needs a new --out."
        )

    def _cause(self, losses: Mapping[str, float], *, autocast: bool) -> str:
        """The likely cause, from what the same batch gives otherwise, and what to do about it."""
        base, tuned = losses.get("base", 0.0), losses.get("tuned", 0.0)
        if not math.isfinite(base):
            return (
                f"The base model alone gives a loss of {base} on them, without LoRA, masks and autocast: check these"
                " records, and the base model's weights with `tuneprune evaluate`."
            )
        if not math.isfinite(tuned):
            found = (
                f"The base model is finite on them (loss {base:.4g}), but with LoRA it is not ({tuned})"
                if "base" in losses
                else f"The tuned weights give a loss of {tuned} on them, even without autocast"
            )
            return f"{found}: tuning has diverged. Lower tune.learning_rate."
        if self.latest["what"] == "update":
            return f"A step could carry a weight beyond {WEIGHT_LIMIT:.0e}. Lower tune.learning_rate."
        if self.latest["what"].startswith("gradient"):
            advice = "Lower tune.learning_rate" + (", or set tune.precision=fp32." if autocast else ".")
            return f"Their losses are finite, but the gradients are not, as after steps that were too large. {advice}"
        if autocast:
            return "Without autocast they give finite losses: set tune.precision=fp32."
        return (
            "Without the method's masks they give finite losses. Lower tune.learning_rate or the method's own learning"
            " rate, or use a base model that is stored in float32."
        )

    def state_dict(self) -> dict[str, Any]:
        """Counts and first examples."""
        return {
            "skipped": self.skipped,
            "counts": dict(self.counts),
            "in_a_row": dict(self.in_a_row),
            "first": self.first,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`."""
        self.skipped, self.first = state["skipped"], list(state["first"])
        self.counts, self.in_a_row = Counter(state["counts"]), Counter(state["in_a_row"])


def first_bad(
    metrics: Mapping[str, Any], penalty: str, model: nn.Module, parameters: Iterable[nn.Parameter]
) -> str | None:
    """The first value of a step that is not finite, starting with its kind; None where all are finite.

    Args:
        metrics: `loss`, `grad_norm`, and the penalty under the given name, if there is one.
        parameters: those with a gradient.
    """
    if not math.isfinite(metrics["loss"]):
        return "loss"
    if not math.isfinite(metrics.get(penalty, 0.0)):
        return f"penalty {penalty}"
    if math.isfinite(metrics["grad_norm"]):
        return None
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for parameter in parameters:
        if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
            return f"gradient of {names.get(id(parameter), 'a parameter of the method')}"
    return "gradient norm"


def update_in_range(groups: Iterable[Mapping[str, Any]], rate: float) -> bool:
    """Whether the weights of all groups stay in range in an AdamW step; `rate` is LoRA's learning rate."""
    for group in groups:
        weights: list[Tensor] = [p for p in group["params"] if p.grad is not None]
        if not stays_in_range(weights, rate * group.get("rate", 1.0), group["weight_decay"]):
            return False
    return True


def _group(kind: str) -> str:
    return "step" if kind in TUNING else kind


def _some(records: Sequence[str]) -> str:
    shown = ", ".join(records[:RECORDS])
    return f"{shown} and {len(records) - RECORDS} more" if len(records) > RECORDS else shown or "unknown"
