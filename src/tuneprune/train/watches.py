"""Checks for signs of an unhealthy tuning. Each warns once, with its value, its limit and advice."""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from statistics import fmean, median
from typing import Any

SPIKE = 20.0
"""A gradient norm this many times the median of the earlier ones is a spike."""
SPIKE_WINDOW = 30
"""Number of norms for the median; fewer give no warning."""
RISE, RISE_NATS = 1.5, 0.5
"""A mean loss is rising if it exceeds the lowest of its phase by this factor and by this many nats per token."""
LOSS_WINDOW = 20
"""Number of losses for the mean."""
STILL_NORM = 1e-9
"""A generator with a smaller median gradient norm does not learn."""
REVISIONS = 5
"""Number of decisions needed to judge a generator."""
MISSED = 0.05
"""Largest relative difference between the size of the last sampled decision and the final size."""
SKIPPED = 0.05
"""Share of steps that may be left out."""
FEW_STEPS = 3
"""Number of steps that may be left out in any run, however short."""


@dataclass(frozen=True)
class Finding:
    """A warning about a tuning."""

    what: str
    step: int
    value: float
    limit: float
    advice: str


@dataclass
class Watches:
    """Checks the metrics of every step."""

    warnings: list[Finding] = field(default_factory=list[Finding])
    norms: deque[float] = field(default_factory=lambda: deque[float](maxlen=SPIKE_WINDOW))
    losses: deque[float] = field(default_factory=lambda: deque[float](maxlen=LOSS_WINDOW))
    lowest: float = math.inf
    phase: str = ""
    generator_norms: list[float] = field(default_factory=list[float])
    churns: list[float] = field(default_factory=list[float])
    sampled_share: float | None = None
    """Share of the parameters that the newest sampled decision kept."""

    def see(self, metrics: Mapping[str, Any]) -> list[Finding]:
        """Check a step; returns the new warnings."""
        before = len(self.warnings)
        if metrics["phase"] != self.phase:
            self._enter(metrics)
        self._see_gradient(metrics)
        self._see_loss(metrics)
        self._see_skipped(metrics)
        if metrics["phase"] == "control":
            self._see_decision(metrics)
        return self.warnings[before:]

    def summary(self) -> list[dict[str, Any]]:
        """For the run's record."""
        return [asdict(found) for found in self.warnings]

    def state_dict(self) -> dict[str, Any]:
        """Everything that later checks depend on."""
        return asdict(self) | {"norms": list(self.norms), "losses": list(self.losses)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`."""
        vars(self).update(state)
        self.warnings = [Finding(**warning) for warning in state["warnings"]]
        self.norms, self.losses = deque(state["norms"], SPIKE_WINDOW), deque(state["losses"], LOSS_WINDOW)

    def _warn(self, what: str, step: int, value: float, limit: float, advice: str) -> None:
        if all(found.what != what for found in self.warnings):
            self.warnings.append(Finding(what, step, value, limit, advice))

    def _enter(self, metrics: Mapping[str, Any]) -> None:
        """Start a new phase, whose losses and gradients differ; after `control`, judge its decisions."""
        if self.phase == "control":
            self._judge_decisions(metrics)
        self.phase, self.lowest = metrics["phase"], math.inf
        self.norms.clear()
        self.losses.clear()

    def _see_gradient(self, metrics: Mapping[str, Any]) -> None:
        norm = metrics["grad_norm"]
        if not math.isfinite(norm):
            return
        if len(self.norms) == SPIKE_WINDOW and norm > (limit := SPIKE * median(self.norms)):
            advice = "Lower tune.learning_rate or tune.clip, and check the records of the step."
            self._warn("gradient spike", metrics["step"], norm, limit, advice)
        self.norms.append(norm)

    def _see_loss(self, metrics: Mapping[str, Any]) -> None:
        if not math.isfinite(metrics["loss"]):
            return
        self.losses.append(metrics["loss"])
        if metrics["phase"] == "control" or len(self.losses) < LOSS_WINDOW:  # a loss may rise while units are removed
            return
        mean = fmean(self.losses)
        limit = max(RISE * self.lowest, self.lowest + RISE_NATS)
        if mean > limit:
            self._warn("rising loss", metrics["step"], mean, limit, "Lower tune.learning_rate.")
        self.lowest = min(self.lowest, mean)

    def _see_skipped(self, metrics: Mapping[str, Any]) -> None:
        skipped, limit = metrics["skipped_steps"], SKIPPED * metrics["steps"]
        if skipped > max(limit, FEW_STEPS):
            advice = "metrics.jsonl names the records of every bad step; remove them, or set tune.precision=fp32."
            self._warn("skipped steps", metrics["step"], skipped, limit, advice)

    def _see_decision(self, metrics: Mapping[str, Any]) -> None:
        if "generator_grad_norm" in metrics and math.isfinite(metrics["generator_grad_norm"]):
            self.generator_norms.append(metrics["generator_grad_norm"])
            self.churns.append(metrics.get("mask_churn", 1.0))
        if metrics.get("budget_loss", 0.0) > 0 or "budget_penalty" in metrics or "active_dims" in metrics:
            self.sampled_share = metrics.get("kept_share")

    def _judge_decisions(self, metrics: Mapping[str, Any]) -> None:
        """Judge the decisions of the control phase, at the first step after it."""
        step = metrics["step"] - 1
        if len(self.generator_norms) >= REVISIONS:
            norm = median(self.generator_norms)
            advice = "Raise the generator's learning rate, or check that calibration data and masks affect the loss."
            if norm < STILL_NORM:
                self._warn("still generator", step, norm, STILL_NORM, advice)
            elif not any(self.churns[1:]):
                self._warn("still masks", step, 0.0, 0.0, advice)
        kept = metrics.get("kept_share")
        if self.sampled_share is not None and kept:
            distance = abs(self.sampled_share / kept - 1)
            if distance > MISSED:
                advice = (
                    "The decision only reached the budget when it was frozen. Use more steps, a larger weight of the"
                    " budget, or ATP's `decisions: on_budget`."
                )
                self._warn("missed budget", step, distance, MISSED, advice)
