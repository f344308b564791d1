"""Metrics of each kind of task."""

from collections.abc import Sequence


def accuracy(answers: Sequence[str], truths: Sequence[str]) -> float:
    """The share of answers that are right."""
    return sum(answer == truth for answer, truth in zip(answers, truths, strict=True)) / len(truths)


def macro_f1(answers: Sequence[str], truths: Sequence[str]) -> float:
    """The plain mean over classes of 2 TP / (2 TP + FP + FN), over the classes that occur in `truths`.

    A class that occurs only in answers does not add a zero; its answers count against the others.
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
