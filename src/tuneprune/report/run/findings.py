"""What went wrong with a run's numbers, or looks as if: bad steps, and warnings of watches."""

import math
from collections.abc import Mapping
from typing import Any

from tuneprune.report.json_files import Section

Scores = Mapping[str, Mapping[str, float]]
Found = dict[str, Any]

EMPTIED = 0.1
"""A group that keeps this share of its units or less is nearly empty."""
RESIDUE = 0.1
"""LoRA on removed units over all LoRA, as norms, before what is removed was set to zero."""
AT_CHANCE_MARGIN = 0.05
"""So much above guessing a reference has to be before guessing counts against the pruned model."""


class BadNumbers(Section):
    """One step or calibration batch that was left out because its numbers were not finite."""

    stage: str
    step: int
    what: str
    batch: list[str]


class Warned(Section):
    """One finding of a watch: the number that was found and the limit that it passed."""

    stage: str
    what: str
    step: int | None = None
    value: float
    limit: float
    advice: str

    @property
    def sentence(self) -> str:
        """The warning for a reader."""
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
    """Groups that lost nearly everything, and LoRA that did not leave what was removed.

    Args:
        widths: units kept and units of every group that stays.
        residue: the plan's `lora_residue`.
    """
    found: list[Found] = []
    emptied = {name: kept / size for name, (kept, size) in widths.items() if 0 < kept <= EMPTIED * size}
    if emptied:
        worst = min(emptied, key=emptied.__getitem__)
        advice = (
            f"{len(emptied)} of {len(widths)} groups keep next to nothing, such as {worst}. Raise budget.min_keep, or"
            " look whether the scores of this method compare across layers."
        )
        found.append({"what": "emptied groups", "value": emptied[worst], "limit": EMPTIED, "advice": advice})
    relative = (residue or {}).get("relative", 0.0)
    if relative > RESIDUE:
        advice = "What tuning put there was cut away. Give LoRA on removed units longer, or more force, to decay."
        found.append({"what": "LoRA residue", "value": relative, "limit": RESIDUE, "advice": advice})
    return [{"stage": "decide", **one} for one in found]


def score_warnings(scores: Scores, reference: Scores | None, chances: Mapping[str, float]) -> list[Found]:
    """Scores that are not finite, and accuracies no better than guessing where the reference's is.

    Args:
        chances: accuracy of guessing, by task, where there are choices.
    """
    found: list[Found] = []
    for task, metrics in scores.items():
        bad = {name: value for name, value in metrics.items() if not math.isfinite(value)}
        if bad:
            advice = f"{', '.join(bad)} of {task} is not finite: the model gives no numbers on some of its texts."
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
