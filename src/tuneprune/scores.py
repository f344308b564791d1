"""Scores of a model on tasks, {task: {metric: number}}: the headline metric of each, and shares of another model's."""

import math
from collections.abc import Iterable, Mapping
from typing import TypedDict

Scores = Mapping[str, Mapping[str, float]]

HEADLINES = ("perplexity", "macro_f1", "rougeL", "accuracy")
"""Metrics that represent a task, first match wins; the others are details."""
LOWER_IS_BETTER = frozenset({"perplexity", "nats_per_byte", "bits_per_byte", "loss"})


class RelativePerformance(TypedDict):
    """Shares of the reference's score, 1 = as good; None where the reference's own score allows no ratio."""

    mean: float | None
    tasks: dict[str, float | None]


def headline_metric(metrics: Iterable[str]) -> str | None:
    """The metric that represents a task with these `metrics`; the first one when none of them is known."""
    names = list(metrics)
    return next((name for name in HEADLINES if name in names), names[0] if names else None)


def relative_performance(scores: Scores, reference: Scores) -> RelativePerformance:
    """How much of the reference's score is left, by task and as the plain mean over tasks.

    Where higher is better a task's share is score / reference, for perplexity reference / score. A task whose reference
    score is missing, 0 or not finite has the share None and is left out of the mean; a score that is not finite counts
    as share 0. Without any share the mean is None.
    """
    shares: dict[str, float | None] = {}
    for task, metrics in scores.items():
        metric = headline_metric(metrics)
        if metric is not None:
            shares[task] = _share(metric, metrics[metric], reference.get(task, {}).get(metric))
    known = [share for share in shares.values() if share is not None]
    return {"mean": sum(known) / len(known) if known else None, "tasks": shares}


def _share(metric: str, score: float, reference: float | None) -> float | None:
    if not reference or not math.isfinite(reference):
        return None
    if not math.isfinite(score):
        return 0.0
    return reference / score if metric in LOWER_IS_BETTER else score / reference
