"""Watches over a tuning: what a healthy one does not show. Each warns once, with its number, its limit and advice."""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from statistics import fmean, median
from typing import Any

SPIKE = 20.0
"""A gradient norm of so many times the median of those before it is a spike."""
SPIKE_WINDOW = 30
"""So many norms make the median; fewer say nothing."""
RISE, RISE_NATS = 1.5, 0.5
"""A mean loss of so many times the lowest of its phase, and so many nats a token above it, is rising."""
LOSS_WINDOW = 20
"""So many losses make a mean."""
STILL_NORM = 1e-9
"""A generator whose median gradient norm is below does not learn."""
REVISIONS = 5
"""Fewer decisions say nothing about a generator."""
MISSED = 0.05
"""The share by which the last sampled decision may miss the size that the run ends with."""
SKIPPED = 0.05
"""The share of steps that may be left out."""
FEW_STEPS = 3
"""So many steps may be left out however short the run."""


@dataclass(frozen=True)
class Warned:
    """One finding of a watch."""

    what: str
    step: int
    value: float
    limit: float
    advice: str


@dataclass
class Watches:
    """Sees the numbers of every step, as they are logged."""

    warnings: list[Warned] = field(default_factory=list[Warned])
    _norms: deque[float] = field(default_factory=lambda: deque[float](maxlen=SPIKE_WINDOW))
    _losses: deque[float] = field(default_factory=lambda: deque[float](maxlen=LOSS_WINDOW))
    _lowest: float = math.inf
    _phase: str = ""
    _generator_norms: list[float] = field(default_factory=list[float])
    _churns: list[float] = field(default_factory=list[float])
    _sampled_share: float | None = None
    """Parameters that the newest sampled decision kept, over all."""

    def see(self, metrics: Mapping[str, Any]) -> list[Warned]:
        """Take a step in; the new warnings."""
        before = len(self.warnings)
        if metrics["phase"] != self._phase:
            self._enter(metrics)
        self._see_gradient(metrics)
        self._see_loss(metrics)
        self._see_skipped(metrics)
        if metrics["phase"] == "control":
            self._see_decision(metrics)
        return self.warnings[before:]

    def summary(self) -> list[dict[str, Any]]:
        """For the run's record."""
        return [asdict(warned) for warned in self.warnings]

    def state_dict(self) -> dict[str, Any]:
        """All that was seen and still matters."""
        return {
            "warnings": self.summary(),
            "norms": list(self._norms),
            "losses": list(self._losses),
            "lowest": self._lowest,
            "phase": self._phase,
            "generator_norms": list(self._generator_norms),
            "churns": list(self._churns),
            "sampled_share": self._sampled_share,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self.warnings = [Warned(**warned) for warned in state["warnings"]]
        self._norms, self._losses = deque(state["norms"], SPIKE_WINDOW), deque(state["losses"], LOSS_WINDOW)
        self._lowest, self._phase = state["lowest"], state["phase"]
        self._generator_norms, self._churns = list(state["generator_norms"]), list(state["churns"])
        self._sampled_share = state["sampled_share"]

    def _warn(self, what: str, step: int, value: float, limit: float, advice: str) -> None:
        if all(warned.what != what for warned in self.warnings):
            self.warnings.append(Warned(what, step, value, limit, advice))

    def _enter(self, metrics: Mapping[str, Any]) -> None:
        """A new phase has other losses and gradients; the end of `control` settles what its decisions were worth."""
        if self._phase == "control":
            self._judge_decisions(metrics)
        self._phase, self._lowest = metrics["phase"], math.inf
        self._norms.clear()
        self._losses.clear()

    def _see_gradient(self, metrics: Mapping[str, Any]) -> None:
        norm = metrics["grad_norm"]
        if not math.isfinite(norm):
            return
        if len(self._norms) == SPIKE_WINDOW and norm > (limit := SPIKE * median(self._norms)):
            advice = "Lower tune.learning_rate or tune.clip, and look at the records of the step."
            self._warn("gradient spike", metrics["step"], norm, limit, advice)
        self._norms.append(norm)

    def _see_loss(self, metrics: Mapping[str, Any]) -> None:
        if not math.isfinite(metrics["loss"]):
            return
        self._losses.append(metrics["loss"])
        if metrics["phase"] == "control" or len(self._losses) < LOSS_WINDOW:  # a loss may rise while units go
            return
        mean = fmean(self._losses)
        limit = max(RISE * self._lowest, self._lowest + RISE_NATS)
        if mean > limit:
            self._warn("rising loss", metrics["step"], mean, limit, "Lower tune.learning_rate.")
        self._lowest = min(self._lowest, mean)

    def _see_skipped(self, metrics: Mapping[str, Any]) -> None:
        skipped, limit = metrics["skipped_steps"], SKIPPED * metrics["steps"]
        if skipped > max(limit, FEW_STEPS):
            advice = "metrics.jsonl names the records of every bad step; take them out, or set tune.precision=fp32."
            self._warn("skipped steps", metrics["step"], skipped, limit, advice)

    def _see_decision(self, metrics: Mapping[str, Any]) -> None:
        if "generator_grad_norm" in metrics and math.isfinite(metrics["generator_grad_norm"]):
            self._generator_norms.append(metrics["generator_grad_norm"])
            self._churns.append(metrics.get("mask_churn", 1.0))
        if metrics.get("budget_loss", 0.0) > 0 or "budget_penalty" in metrics or "active_dims" in metrics:
            self._sampled_share = metrics.get("kept_share")

    def _judge_decisions(self, metrics: Mapping[str, Any]) -> None:
        """What the control phase came to, at the first step behind it."""
        step = metrics["step"] - 1
        if len(self._generator_norms) >= REVISIONS:
            norm = median(self._generator_norms)
            advice = "Raise the generator's learning rate, or look whether calibration data and masks reach the loss."
            if norm < STILL_NORM:
                self._warn("still generator", step, norm, STILL_NORM, advice)
            elif not any(self._churns[1:]):
                self._warn("still masks", step, 0.0, 0.0, advice)
        kept = metrics.get("kept_share")
        if self._sampled_share is not None and kept:
            distance = abs(self._sampled_share / kept - 1)
            if distance > MISSED:
                advice = (
                    "The decision was cut to the budget at once when it was frozen. Give it more steps, a larger weight"
                    " of the budget, or ATP's `decisions: on_budget`."
                )
                self._warn("missed budget", step, distance, MISSED, advice)
