"""Warnings about a run: steps with bad numbers, emptied groups, suspicious scores."""

import math
from collections.abc import Mapping
from typing import Any

from tuneprune.report.json_files import Section

Scores = Mapping[str, Mapping[str, float]]
Found = dict[str, Any]

EMPTIED = 0.1
"""A group that keeps this share of its units or less is nearly empty."""
RESIDUE = 0.1
"""Norm of LoRA on removed units over that of all LoRA, before it was set to zero."""
AT_CHANCE_MARGIN = 0.05
"""Warn of a score at chance only if the reference is above chance by more than this."""


class BadNumbers(Section):
    """One step or calibration batch that was skipped because its numbers were not finite."""

    stage: str
    step: int
    what: str
    batch: list[str]


class Warned(Section):
    """A warning: the number that was found, and the limit that it passed."""

    stage: str
    what: str
    step: int | None = None
    value: float
    limit: float
    advice: str

    @property
    def sentence(self) -> str:
        """The warning in a sentence."""
        place = self.stage if self.step is None else f"{self.stage}, step {self.step}"
        return f"{self.what} ({place}): {self.value:.4g}, limit {self.limit:.4g}. {self.advice}"


def training_findings(stages: Mapping[str, Found]) -> Found:
    """Bad numbers and warnings of every stage's tuning, as a record holds them."""
    return {
        "bad_numbers": {stage: found["bad_numbers"] for stage, found in stages.items() if found["bad_numbers"]},
        "bad_examples": [{"stage": s, **one} for s, found in stages.items() for one in found["bad_examples"]],
        "warnings": [{"stage": s, **one} for s, found in stages.items() for one in found["warnings"]],
    }


def decision_warnings(widths: Mapping[str, tuple[int, int]], residue: Mapping[str, float] | None) -> list[Found]:
    """Groups that lost nearly everything, and LoRA that was left on removed units.

    Args:
        widths: units kept and units, of every group that still exists.
        residue: the plan's `lora_residue`.
    """
    found: list[Found] = []
    emptied = {name: kept / size for name, (kept, size) in widths.items() if 0 < kept <= EMPTIED * size}
    if emptied:
        worst = min(emptied, key=emptied.__getitem__)
        advice = (
            f"{len(emptied)} of {len(widths)} groups keep almost nothing, such as {worst}. Raise budget.min_keep, or"
            " check whether this method's scores are comparable across layers."
        )
        found.append({"what": "emptied groups", "value": emptied[worst], "limit": EMPTIED, "advice": advice})
    relative = (residue or {}).get("relative", 0.0)
    if relative > RESIDUE:
        advice = "Part of what LoRA learnt was cut away. Let LoRA on removed units decay longer, or faster."
        found.append({"what": "LoRA residue", "value": relative, "limit": RESIDUE, "advice": advice})
    return [{"stage": "decide", **one} for one in found]


def score_warnings(scores: Scores, reference: Scores | None, chances: Mapping[str, float]) -> list[Found]:
    """Scores that are not finite, and accuracies at chance where the reference is above it.

    Args:
        chances: accuracy of guessing, by task, for tasks with choices.
    """
    found: list[Found] = []
    for task, metrics in scores.items():
        bad = {name: value for name, value in metrics.items() if not math.isfinite(value)}
        if bad:
            advice = f"{', '.join(bad)} of {task} is not finite: the model's outputs on some texts are not finite."
            found.append(
                {"what": "score not finite", "value": next(iter(bad.values())), "limit": 0.0, "advice": advice}
            )
        chance, accuracy = chances.get(task), metrics.get("accuracy")
        if chance is None or accuracy is None or reference is None:
            continue
        if accuracy <= chance and reference.get(task, {}).get("accuracy", 0.0) > chance + AT_CHANCE_MARGIN:
            advice = f"On {task} the model answers no better than guessing: keep more, or tune longer."
            found.append({"what": "score at chance", "value": accuracy, "limit": chance, "advice": advice})
    return [{"stage": "evaluate", **one} for one in found]
