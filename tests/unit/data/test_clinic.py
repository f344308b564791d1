import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from random import Random

import pytest

from tuneprune.data import clinic
from tuneprune.errors import ConfigError

FIELDS = {
    "text": {"id", "text"},
    "nli": {"id", "premise", "hypothesis", "answer"},
    "qa": {"id", "question", "context", "answer"},
    "summary": {"id", "text", "summary"},
}
NOTE = {"text": "text", "nli": "premise", "qa": "context", "summary": "text"}


@pytest.mark.parametrize("kind", FIELDS)
@pytest.mark.parametrize("split", clinic.SPLITS)
def test_records_have_their_fields_and_sizes(kind, split):
    records = clinic.records(kind, split)
    assert len(records) == clinic.SIZES[kind][clinic.SPLITS.index(split)]
    assert all(set(record) == FIELDS[kind] and all(record.values()) for record in records)
    assert len({record["id"] for record in records}) == len(records)
    assert not any("{" in text or "}" in text or "  " in text for record in records for text in record.values())


@pytest.mark.parametrize("kind", FIELDS)
def test_notes_are_short_and_never_shared_between_splits(kind):
    notes = {split: [record[NOTE[kind]] for record in clinic.records(kind, split)] for split in clinic.SPLITS}
    everything = [note for split in notes.values() for note in split]
    lengths = [len(note.split()) for note in everything]
    assert len(set(everything)) == len(everything)
    assert max(lengths) <= 70
    assert min(lengths) >= 15
    assert 25 < sum(lengths) / len(lengths) < 60


def test_fact_combinations_belong_to_one_split():
    rng = Random(0)
    seen = {}
    for split in clinic.SPLITS * 200:
        visit = clinic.draw_visit(rng, split, lambda _: True)
        facts = (visit.complaint, visit.duration, tuple(sorted(visit.present)), visit.values.get("plan"))
        assert seen.setdefault(facts, split) == split


@pytest.mark.parametrize("kind", ["nli", "qa"])
@pytest.mark.parametrize("split", clinic.SPLITS)
def test_answers_are_balanced_and_the_claim_alone_does_not_give_them_away(kind, split):
    records = clinic.records(kind, split)
    answers = Counter(record["answer"] for record in records)
    assert set(answers) == ({"entailment", "contradiction", "neutral"} if kind == "nli" else {"yes", "no", "maybe"})
    assert max(answers.values()) - min(answers.values()) <= 1
    if split == "train":
        test = clinic.records(kind, "test")
        asked = "hypothesis" if kind == "nli" else "question"
        counts = {}
        for record in records:
            counts.setdefault(record[asked], Counter())[record["answer"]] += 1
        guesses = [counts[r[asked]].most_common(1)[0][0] if r[asked] in counts else "" for r in test]
        hits = sum(guess == r["answer"] for guess, r in zip(guesses, test, strict=True))
        assert hits / len(test) < 0.45  # always giving the claim's most frequent answer is little better than guessing


CUES = {  # claim -> words of the note that make it true, and words that decide it either way
    "The patient is getting worse": (("worse",), ("worse", "better")),
    "The patient is getting better": (("better",), ("worse", "better")),
    "The patient was admitted": (("admitted",), ("admitted", "sent home")),
    "The patient was sent home": (("sent home",), ("admitted", "sent home")),
    "The temperature is raised": (("emperature is raised", "emperature was raised"), ("emperature",)),
    "The pulse is fast": (("ulse is fast", "ulse was fast"), ("ulse",)),
    "The patient has cough": ((), ("cough",)),
    "The patient has nausea": ((), ("nausea",)),
}


def test_answers_follow_from_the_words_of_the_note():
    for record in clinic.records("nli", "train"):
        note, claim, answer = record["premise"], record["hypothesis"].rstrip("."), record["answer"]
        if claim.endswith(" is abnormal"):
            test = claim.removeprefix("The ").removesuffix(" is abnormal")
            makes_true, settles = ("abnormal",), (test,)
        else:
            makes_true, settles = CUES[claim]
        if makes_true:
            assert any(cue in note for cue in makes_true) == (answer == "entailment"), record
        assert any(cue in note for cue in settles) == (answer != "neutral"), record


def test_verdict_of_symptoms_and_values():
    values = {"plan": "admitted", "pulse": "fast"}
    visit = clinic.Visit("A. B.", 0, "", "cough", "two days", ("chills",), ("cough",), values)
    table = [
        ("symptom", "chills", "entailment"),
        ("symptom", "cough", "contradiction"),
        ("symptom", "nausea", "neutral"),
        ("plan", "admitted", "entailment"),
        ("plan", "sent home", "contradiction"),
        ("pulse", "slow", "contradiction"),
        ("temperature", "low", "neutral"),
    ]
    for topic, value, expected in table:
        assert clinic.verdict(visit, clinic.Claim(topic, value)) == expected, (topic, value)


def test_summary_names_complaint_main_finding_and_plan():
    for record in clinic.records("summary", "test"):
        note, summary = record["text"], record["summary"]
        complaint = next(complaint for complaint in clinic.COMPLAINTS if summary.lower().startswith(complaint))
        assert complaint in note
        assert summary.rpartition(", ")[2].rstrip(".") in note
        assert len(summary.split()) <= 16


def test_records_are_the_same_in_a_process_with_another_hash_seed():
    code = (
        "import hashlib, json, runpy;"
        f"clinic = runpy.run_path({clinic.__file__!r});"  # without the package, whose imports are slow
        "everything = [clinic['records'](kind, split) for kind in clinic['SIZES']"
        " for split in clinic['SPLITS']];"
        "print(hashlib.sha256(json.dumps(everything).encode()).hexdigest())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    other = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    everything = [clinic.records(kind, split) for kind in clinic.SIZES for split in clinic.SPLITS]
    assert other.stdout.strip() == hashlib.sha256(json.dumps(everything).encode()).hexdigest()


@pytest.mark.parametrize(
    ("kind", "split", "message"),
    [
        ("nil", "train", "Did you mean `nli`"),
        ("nli", "tests", "Did you mean `test`"),
        ("qa", "dev", "train, val, test"),
    ],
)
def test_unknown_kind_or_split_is_refused(kind, split, message):
    with pytest.raises(ConfigError, match=message):
        clinic.records(kind, split)
