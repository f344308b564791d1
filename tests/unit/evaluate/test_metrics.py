import math
from random import Random

import pytest
from sklearn.metrics import f1_score

from tuneprune.evaluate import LoadedTask, headline, relative_performance
from tuneprune.evaluate.metrics import accuracy, macro_f1, rouge

TEXT = LoadedTask("text", "perplexity", ())
ASKED = LoadedTask("asked", "qa", ())
TOLD = LoadedTask("told", "summary", ())


def test_macro_f1_equals_scikit_learn_over_the_classes_of_the_truth():
    rng = Random(0)
    for _ in range(20):
        truths = rng.choices(["yes", "no", "maybe"], k=30)
        answers = rng.choices(["yes", "no", "maybe", "else"], k=30)
        labels = sorted(set(truths))
        expected = f1_score(truths, answers, labels=labels, average="macro", zero_division=0)
        assert macro_f1(answers, truths) == pytest.approx(expected)


def test_accuracy_counts_hits():
    assert accuracy(["a", "b", "b"], ["a", "b", "c"]) == pytest.approx(2 / 3)


def test_rouge_stems_and_averages():
    same = rouge(["the patients coughed"], ["the patient coughs"])
    assert same == {"rouge1": 1.0, "rouge2": 1.0, "rougeL": 1.0}
    assert rouge(["", "the patient"], ["the patient", "the patient"])["rouge1"] == 0.5


def test_relative_performance_is_inverse_for_perplexity_and_the_mean_is_plain():
    pruned = {"text": {"perplexity": 20.0}, "asked": {"macro_f1": 0.3}, "told": {headline("summary"): 0.2}}
    reference = {
        "text": {"perplexity": 10.0},
        "asked": {"macro_f1": 0.6},
        "told": {headline("summary"): 0.25},
    }
    relative = relative_performance(pruned, reference, [TEXT, ASKED, TOLD])
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
    relative = relative_performance({"text": pruned} | same, {"text": reference} | same, [TEXT, ASKED])
    assert relative == {"mean": mean, "tasks": {"text": share, "asked": 1.0}}


def test_a_reference_of_zero_is_left_out_and_no_task_at_all_has_no_mean():
    relative = relative_performance({"asked": {"macro_f1": 0.1}}, {"asked": {"macro_f1": 0.0}}, [ASKED])
    assert relative == {"mean": None, "tasks": {"asked": None}}
