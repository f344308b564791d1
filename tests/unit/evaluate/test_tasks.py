import pytest
from helpers.toy_evaluation import byte_tokenizer
from pydantic import ValidationError

from tuneprune.data import SUITES
from tuneprune.evaluate import EvaluateConfig, load_tasks

OWN = {"kind": "qa", "path": "own.jsonl"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "either `suite`"),
        ({"suite": "clinic", "tasks": [OWN]}, "either `suite`"),
        ({"suite": "clinc"}, "Did you mean `clinic`"),
        ({"suite": ["clinic", "legl"]}, "Did you mean `legal`"),
        ({"suite": []}, "no task is named"),
        ({"tasks": []}, "no task is named"),
        ({"suite": ["clinic", "clinic"]}, "two tasks are called `clinic_text`"),
        ({"tasks": [OWN, OWN]}, "two tasks are called `own`"),
        ({"suite": "clinic", "limit": 0}, "greater than 0"),
        ({"suite": "clinic", "batchsize": 4}, "Extra inputs"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(values, message):
    with pytest.raises(ValidationError, match=message):
        EvaluateConfig(**values)


@pytest.mark.parametrize("suite", SUITES)
def test_every_suite_has_its_tasks_and_the_smaller_limit_wins(suite):
    specs = EvaluateConfig(suite=suite, limit=5).specs()
    assert [spec.name for spec in specs] == [spec.name for spec in SUITES[suite]]
    assert all(spec.limit == 5 for spec in specs)
    own = EvaluateConfig(tasks=[OWN | {"limit": 3}], limit=5).specs()
    assert [spec.limit for spec in own] == [3]


def test_embedded_suite_loads_with_its_kinds():
    tasks = load_tasks(EvaluateConfig(suite="clinic", limit=6), byte_tokenizer())
    assert [(task.kind, len(task.examples)) for task in tasks] == [
        ("perplexity", 6),
        ("nli", 6),
        ("qa", 6),
        ("summary", 6),
    ]
