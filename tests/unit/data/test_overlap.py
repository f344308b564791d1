import pytest
from helpers.sweeps import quick_where

from tuneprune.data import Example, SourceConfig, overlaps, read_source
from tuneprune.data.overlap import Shared, leaks
from tuneprune.errors import DataError

CHOICES = (" yes", " no")


def asked(passage, question, answer=" yes", **more):
    return Example(f'"{passage}" {question}', answer, choices=CHOICES, body=passage, **more)


def short(passage, summary):
    return Example(f'"{passage}" Summary:', summary, body=passage)


def text(words):
    return Example("", words)


SAME_ITEM = {
    "same text": (text("one two"), text("one two")),
    "case and white space": (text("One\n two "), text("one two")),
    "same question, other answer": (asked("p", "q?"), asked("p", "q?", " no")),
    "same passage summarised otherwise": (short("p", "a"), short("p", "b")),
    "passage of a summary inside a question": (asked("p", "q?"), short("p", "a")),
    "text of a perplexity task inside a prompt": (asked("long text", "q?"), text("long text")),
    "prompt and answer as one text": (text('"p" q? yes'), asked("p", "q?")),
}
OTHER_ITEM = {
    "same passage, other question": (asked("p", "q?"), asked("p", "r?")),
    "passage alone, test asks about it": (text("p"), asked("p", "q?")),
    "other text": (text("one"), text("two")),
}


@pytest.mark.parametrize(("train", "test"), SAME_ITEM.values(), ids=SAME_ITEM)
def test_items_that_count_as_the_same(train, test):
    assert leaks([text("unrelated"), train], [text("other"), test]) == [1]
    with pytest.raises(DataError, match="1 of 1 training examples are test items"):
        overlaps([train], [], [test])
    with pytest.raises(DataError, match="1 of 1 calibration examples are test items"):
        overlaps([], [train], [test])


@pytest.mark.parametrize(("train", "test"), OTHER_ITEM.values(), ids=OTHER_ITEM)
def test_items_that_do_not(train, test):
    assert overlaps([train], [train], [test]).train_test.items == 0


def test_shared_passages_are_counted():
    report = overlaps([asked("p", "q?")], [asked("P", "q?"), asked("p", "r?")], [asked("p", "s?"), asked("z", "q?")])
    assert report.train_test == Shared(items=0, passages=1)
    assert report.train_calibration == Shared(items=1, passages=1)
    assert report.summary()["calibration_test"] == {"items": 0, "passages": 1}


def test_the_message_says_how_many_and_where():
    train = [asked("p", "q?", source="mine.jsonl", index=7), asked("r", "q?")]
    test = [asked("p", "q?", source="rqe[test]", index=3)]
    with pytest.raises(DataError, match=r"1 of 2 .* first mine\.jsonl:7 = rqe\[test\]:3 \('p'\).*test_overlap: drop"):
        overlaps(train, [], test)


@pytest.mark.parametrize(
    "name",
    quick_where(
        lambda name: name in ("rqe", "pubmedqa"),
        ["rqe", "pubmedqa", "casehold", "snli", "billsum", "dc_code", "clinic_nli", "clinic_qa"],
    ),
)
def test_disjoint_splits_pass(real_data, name):
    parts = [read_source(SourceConfig(source=name), None, split) for split in ("train", "val", "test")]
    report = overlaps(*parts)
    assert report.train_test.items == 0
    assert report.train_test.passages == (3 if name == "snli" else 0)


def test_summaries_of_questions_that_training_pairs_are_found(real_data):
    train = read_source(SourceConfig(source="rqe"), None, "train")
    test = read_source(SourceConfig(source="rqe_question_summary"), None, "test")
    with pytest.raises(DataError, match=r"rqe\[train\]:\d+ = rqe_question_summary\[test\]:\d+"):
        overlaps(train, [], test)
