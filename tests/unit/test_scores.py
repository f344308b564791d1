import math

import pytest
from helpers.report_samples import TASKS, scores

from tuneprune.data import METRICS
from tuneprune.scores import headline_metric, relative_performance


def test_headlines():
    assert headline_metric(["accuracy", "macro_f1"]) == "macro_f1"
    assert headline_metric(["rouge1", "rouge2", "rougeL"]) == "rougeL"
    assert headline_metric(["nats_per_byte", "perplexity"]) == "perplexity"
    assert headline_metric(["bleu"]) == "bleu"
    assert headline_metric([]) is None
    for metrics in METRICS.values():
        assert headline_metric(sorted(metrics)) == metrics[0]


def test_relative_performance_inverts_perplexity_and_counts_failures():
    assert relative_performance(scores(0.5), scores(1.0))["mean"] == pytest.approx(0.5)
    assert relative_performance({"a": {"accuracy": 0.0}}, {"a": {"accuracy": 0.5}})["mean"] == 0
    assert relative_performance({"a": {"perplexity": float("inf")}}, {"a": {"perplexity": 5.0}})["mean"] == 0
    assert relative_performance({"a": {"accuracy": 0.5}}, {"a": {"accuracy": 0.0}})["mean"] is None
    assert relative_performance({task: {"accuracy": 1.0} for task in TASKS}, {})["mean"] is None


def test_relative_performance_is_inverse_for_perplexity_and_the_mean_is_plain():
    pruned = {"text": {"perplexity": 20.0}, "asked": {"macro_f1": 0.3}, "told": {"rougeL": 0.2}}
    reference = {
        "text": {"perplexity": 10.0},
        "asked": {"macro_f1": 0.6},
        "told": {"rougeL": 0.25},
    }
    relative = relative_performance(pruned, reference)
    assert relative["tasks"] == {"text": 0.5, "asked": 0.5, "told": pytest.approx(0.8)}
    assert relative["mean"] == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("pruned", "reference", "share", "mean"),
    [
        ({"perplexity": 20.0}, {"perplexity": math.inf}, None, 1.0),
        ({"perplexity": math.inf}, {"perplexity": 10.0}, 0.0, 0.5),
    ],
)
def test_scores_that_are_not_finite(pruned, reference, share, mean):
    same = {"asked": {"macro_f1": 0.5}}
    relative = relative_performance({"text": pruned} | same, {"text": reference} | same)
    assert relative == {"mean": mean, "tasks": {"text": share, "asked": 1.0}}


def test_a_reference_of_zero_is_left_out_and_no_task_at_all_has_no_mean():
    relative = relative_performance({"asked": {"macro_f1": 0.1}}, {"asked": {"macro_f1": 0.0}})
    assert relative == {"mean": None, "tasks": {"asked": None}}
