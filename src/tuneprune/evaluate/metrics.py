"""Metrics of each kind of task, and the performance of one model relative to another."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, TypedDict

from tuneprune.data.prompts import Kind
from tuneprune.data.suites import METRICS

Scores = Mapping[str, Mapping[str, float]]

_LOWER_IS_BETTER = ("perplexity",)


class NamedTask(Protocol):
    """Anything with a name and a kind: a `TaskSpec` or a `LoadedTask`."""

    @property
    def name(self) -> str: ...  # noqa: D102  (named by itself)
    @property
    def kind(self) -> Kind: ...  # noqa: D102  (named by itself)


class RelativePerformance(TypedDict):
    """Shares of the reference's score, 1 = as good; None where the reference's own score allows no ratio."""

    mean: float | None
    tasks: dict[str, float | None]


def headline(kind: Kind) -> str:
    """The metric of a kind of task that stands for it in the relative performance."""
    return METRICS[kind][0]


def relative_performance(pruned: Scores, reference: Scores, tasks: Iterable[NamedTask]) -> RelativePerformance:
    """How much of the reference's score is left, by task and as the plain mean over tasks.

    Where higher is better a task's share is pruned / reference, for perplexity reference / pruned. A task
    whose reference score is 0 or not finite has the share None and is left out of the mean; a pruned score
    that is not finite counts as share 0. With no share at all the mean is None.

    Args:
        pruned: what `evaluate` returned for the model in question.
        reference: what it returned for the dense tuned model, on the same tasks.
    """
    shares: dict[str, float | None] = {}
    for task in tasks:
        metric = headline(task.kind)
        shares[task.name] = _share(metric, pruned[task.name][metric], reference[task.name][metric])
    known = [share for share in shares.values() if share is not None]
    return {"mean": sum(known) / len(known) if known else None, "tasks": shares}


def _share(metric: str, pruned: float, reference: float) -> float | None:
    if reference == 0 or not math.isfinite(reference):
        return None
    if not math.isfinite(pruned):
        return 0.0
    return reference / pruned if metric in _LOWER_IS_BETTER else pruned / reference


def accuracy(answers: Sequence[str], truths: Sequence[str]) -> float:
    """The share of answers that are right."""
    return sum(answer == truth for answer, truth in zip(answers, truths, strict=True)) / len(truths)


def macro_f1(answers: Sequence[str], truths: Sequence[str]) -> float:
    """The plain mean over classes of 2 TP / (2 TP + FP + FN), over the classes that occur in `truths`.

    A class that is only ever answered wrongly adds no zero of its own; its answers count against the others.
    """
    pairs = list(zip(answers, truths, strict=True))
    scores = []
    for label in sorted(set(truths)):
        hits = sum(answer == truth == label for answer, truth in pairs)
        mentions = sum((answer == label) + (truth == label) for answer, truth in pairs)
        scores.append(2 * hits / mentions)
    return sum(scores) / len(scores)


def rouge(summaries: Sequence[str], truths: Sequence[str]) -> dict[str, float]:
    """Mean F-measures of ROUGE-1, ROUGE-2 and ROUGE-L between 0 and 1, with Porter stemming."""
    from rouge_score.rouge_scorer import RougeScorer  # slow to import, and only summaries need it

    names = ["rouge1", "rouge2", "rougeL"]
    scorer = RougeScorer(names, use_stemmer=True)
    scored = [scorer.score(truth, summary) for summary, truth in zip(summaries, truths, strict=True)]
    return {name: sum(score[name].fmeasure for score in scored) / len(scored) for name in names}
