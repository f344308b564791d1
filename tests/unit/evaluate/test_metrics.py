from random import Random

import pytest
from sklearn.metrics import f1_score

from tuneprune.evaluate.metrics import accuracy, macro_f1, rouge


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
