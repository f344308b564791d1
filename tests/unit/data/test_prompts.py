import json

import pytest
from pydantic import ValidationError

from tuneprune.data import METRICS, SUITES, TASKS, SourceConfig, TaskSpec, load_task, read_source
from tuneprune.errors import DataError

RECORDS = {
    "nli": {"premise": "It rains.", "hypothesis": "It is wet.", "answer": "entailment"},
    "qa": {"context": ["One.", "Two."], "question": "Two?", "answer": "maybe"},
    "multiple_choice": {"prompt": "See A (<HOLDING>); B", "choices": ["x", "y", "z"], "answer": 2},
    "summary": {"text": "A long story.", "summary": "Story."},
}
COMPLETIONS = {"nli": " true", "qa": " maybe", "multiple_choice": " 3", "summary": " Story."}


def load(tmp_path, kind, *records):
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return load_task(TaskSpec(path=path, kind=kind), None)


@pytest.mark.parametrize("kind", RECORDS)
def test_every_kind_is_worded_from_own_records(tmp_path, kind):
    (example,) = load(tmp_path, kind, RECORDS[kind])
    assert example.completion == COMPLETIONS[kind]
    assert example.body
    assert example.prompt.count(example.body) == 1
    assert not example.prompt.endswith((" ", "\n"))
    if kind != "summary":
        assert example.completion in example.choices
        assert len(set(example.choices)) == len(example.choices)
        assert all(choice.startswith(" ") and choice.strip() for choice in example.choices)


def test_training_reads_what_evaluation_reads(tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps(RECORDS["qa"]) + "\n")
    trained = read_source(SourceConfig(path=path, kind="qa"), None, "train")
    assert trained == load_task(TaskSpec(path=path, kind="qa"), None)


@pytest.mark.parametrize("suite", SUITES)
def test_suites_on_real_data_have_answers_among_their_choices(real_data, suite):
    for spec in SUITES[suite]:
        examples = load_task(spec.model_copy(update={"limit": 40}), None)
        assert len(examples) == min(40, len(examples))
        for example in examples:
            assert example.is_text == (spec.kind == "perplexity")
            assert not example.choices or example.completion in example.choices
            assert example.body in example.prompt
        if spec.kind in ("nli", "qa", "multiple_choice"):
            assert len({example.completion for example in examples}) > 1


def test_named_sources_give_training_and_evaluation_the_same_wording(real_data):
    for name in ("pubmedqa", "dc_code", "dc_code_heading", "casehold", "clinic_nli"):
        spec = TaskSpec(source=name, split="train", limit=5)
        trained = read_source(SourceConfig(source=name, split="train", limit=5), None, "train")
        assert load_task(spec, None) == trained


def test_the_two_views_of_one_source(real_data):
    text, heading = (
        read_source(SourceConfig(source=n, limit=1), None, "test")[0] for n in ("dc_code", "dc_code_heading")
    )
    assert text.is_text
    assert heading.body == text.completion
    assert heading.completion == " Workplace fraud prohibited"


def test_nli_is_two_way_where_a_label_is(tmp_path):
    two = load(tmp_path, "nli", RECORDS["nli"], RECORDS["nli"] | {"answer": "not_entailment"})
    assert [example.completion for example in two] == [" yes", " no"]
    assert two[0].choices == (" yes", " no")


def test_a_holding_keeps_the_words_before_its_mark(tmp_path):
    (example,) = load(tmp_path, "multiple_choice", RECORDS["multiple_choice"])
    assert (example.body, example.body_keeps) == ("See A (", "end")
    assert "3. z\n" in example.prompt
    (example,) = load(tmp_path, "multiple_choice", RECORDS["multiple_choice"] | {"prompt": "Pick one.", "answer": "0"})
    assert (example.body, example.body_keeps, example.completion) == ("Pick one.", "start", " 1")


def test_the_published_field_names_work(tmp_path):
    (example,) = load(tmp_path, "nli", {"sentence1": "a", "sentence2": "b", "gold_label": "neutral"})
    assert example.completion == " unknown"
    published = {
        "context": {"contexts": ["a", "b"], "labels": ["X"]},
        "question": "q?",
        "final_decision": "no",
    }
    (example,) = load(tmp_path, "qa", published)
    assert (example.body, example.completion) == ("a b", " no")


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        (
            "nli",
            {"answer": "yes"},
            r"own\.jsonl:1: the answer 'yes' is not one of entailment, contradiction, neutral",
        ),
        ("nli", {"premise": 3}, "the field `premise` has to be a text, got 3"),
        ("qa", {"answer": None}, "the answer None is not one of yes, no, maybe"),
        ("multiple_choice", {"answer": 3}, r"the answer 3 is not a position in `choices` \(0 to 2\)"),
        ("multiple_choice", {"answer": True}, "the answer True is not a position"),
        ("multiple_choice", {"choices": ["x"]}, "has to be a list of two or more texts"),
        ("summary", {"text": " "}, r"1 of 1 records cannot be used \(1 blank: record 1\)"),
    ],
)
def test_unusable_records_are_named(tmp_path, kind, change, message):
    with pytest.raises(DataError, match=message):
        load(tmp_path, kind, RECORDS[kind] | change)


def test_a_missing_field_says_how_to_rename(tmp_path):
    with pytest.raises(DataError, match=r"the field `hypothesis` is missing \(found: premise\). Rename a column"):
        load(tmp_path, "nli", {"premise": "a"})


def test_task_specs_fill_themselves_in():
    spec = TaskSpec(source="billsum")
    assert (spec.name, spec.kind, spec.metrics[0]) == ("billsum", "summary", "rougeL")
    assert TaskSpec(path="sets/mednli.jsonl", kind="nli").name == "mednli"
    assert set(METRICS) == {task.kind for task in TASKS.values()}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"source": "billsum", "kind": "qa"}, "is of kind `summary`, not `qa`"),
        ({"path": "a.jsonl"}, "kind"),
        ({"kind": "qa"}, "exactly one of"),
        ({"source": "a", "path": "b", "kind": "qa"}, "exactly one of"),
        ({"source": ["a"], "kind": "qa"}, "source"),
        ({"source": "rqe", "limits": 3}, "Extra inputs"),
        ("rqe", "valid dictionary"),
    ],
)
def test_wrong_task_specs(values, message):
    with pytest.raises(ValidationError, match=message):
        TaskSpec.model_validate(values)
