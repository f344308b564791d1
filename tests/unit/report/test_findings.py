"""Bad numbers and warnings in records and pages."""

import math

import pytest
from helpers.report_samples import record as run_record

from tuneprune.report.run.findings import EMPTIED, RESIDUE, decision_warnings, score_warnings, training_findings
from tuneprune.report.run.page import render_page
from tuneprune.report.run.record import RunRecord, TrainingRecord

FOUND = {
    "bad_numbers": {"loss": 2, "calibration": 1},
    "bad_examples": [{"step": 3, "what": "loss", "batch": ["notes.jsonl:1", "notes.jsonl:7"]}],
    "warnings": [{"what": "rising loss", "step": 9, "value": 3.0, "limit": 2.0, "advice": "Lower it."}],
}


def names(warnings):
    return [one["what"] for one in warnings]


def test_groups_that_lost_nearly_everything():
    assert not decision_warnings({"a": (2, 10), "b": (0, 4), "c": (1, 4)}, None)  # a dropped layer is a decision
    (warned,) = decision_warnings({"a": (2, 10), "b": (7, 100)}, None)
    assert warned["what"] == "emptied groups"
    assert (warned["value"], warned["limit"]) == (0.07, EMPTIED)
    assert "1 of 2 groups" in warned["advice"]
    assert " b." in warned["advice"]


def test_lora_that_stayed_on_removed_units():
    assert not decision_warnings({}, {"before_projection": 9.0, "relative": RESIDUE})
    assert names(decision_warnings({}, {"before_projection": 9.0, "relative": 0.2})) == ["LoRA residue"]


@pytest.mark.parametrize(
    ("pruned", "tuned", "warned"),
    [
        ({"accuracy": 0.5}, {"accuracy": 0.8}, []),
        ({"accuracy": 0.3}, {"accuracy": 0.8}, ["score at chance"]),
        ({"accuracy": 0.3}, {"accuracy": 0.36}, []),  # no model of this size can do it
        ({"accuracy": 0.3}, None, []),
        ({"perplexity": math.inf, "nats_per_byte": math.nan}, None, ["score not finite"]),
    ],
)
def test_scores(pruned, tuned, warned):
    found = score_warnings({"task": pruned}, None if tuned is None else {"task": tuned}, {"task": 1 / 3})
    assert names(found) == warned


def test_record_and_page_show_warnings():
    stages = {"reference": FOUND | {"bad_numbers": {}, "bad_examples": [], "warnings": []}, "tune": FOUND}
    training = TrainingRecord.model_validate(training_findings(stages))
    assert training.bad_numbers == {"tune": {"loss": 2, "calibration": 1}}
    (sentence,) = training.bad_sentences
    assert sentence.startswith("skipped because numbers were not finite: 2 x loss (tune), 1 x calibration (tune); ")
    assert sentence.endswith("first in step 3 (tune): loss; records notes.jsonl:1, notes.jsonl:7")
    assert training.warnings[0].sentence == "rising loss (tune, step 9): 3, limit 2. Lower it."
    record = run_record()
    record = record.model_copy(update={"training": training})
    page = str(render_page(record, None, [], ""))
    assert "<h2>Warnings</h2>" in page
    assert "notes.jsonl:7" in page
    assert RunRecord.from_data(record.model_dump(by_alias=True, mode="json"), "again").training == training


def test_healthy_record_has_no_warnings():
    assert not TrainingRecord().bad_sentences
    assert "<h2>Warnings</h2>" not in str(render_page(run_record(), None, [], ""))
