"""Data that is not there, not readable, or shared between training and test."""

import json

import pytest
from refusals import set_to


def training_text(text):
    return lambda case: case.write(text)


def data_file(name, content):
    def change(case):
        (case.folder / name).write_bytes(content)
        case.content["data"]["train"] = [{"path": str(case.folder / name)}]

    return change


def calibration_is_test(case):
    case.content["data"]["calibration"] = [{"path": str(case.folder / "test.jsonl")}]


def training_holds_test(case):
    case.write((case.folder / "train.jsonl").read_text() + (case.folder / "test.jsonl").read_text())


GOOD = json.dumps({"text": "the cat sat"}) + "\n"
MESSAGES = json.dumps({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}) + "\n"

CASES = {
    "summary too long for the model": (
        set_to("evaluate", {"tasks": [{"source": "clinic_summary", "max_new_tokens": 128}]}),
        ["clinic_summary", "max_new_tokens=128", "context of 128"],
    ),
    "missing data file": (set_to("data.train", [{"path": "nowhere.jsonl"}]), ["nowhere.jsonl", "no such data file"]),
    "empty data file": (training_text(""), ["train.jsonl", "no records"]),
    "data file of blank lines": (training_text("\n\n"), ["train.jsonl", "no records"]),
    "unreadable data file": (training_text("\udcff".encode("utf8", "surrogatepass").decode("latin1")), ["train.jsonl"]),
    "data that is not text": (data_file("x.jsonl", b"\xff\xfe\x00{"), ["x.jsonl", "UTF-16", "Save it as UTF-8"]),
    "broken parquet": (data_file("x.parquet", b"PAR1 no"), ["x.parquet", "Parquet"]),
    "unknown data format": (data_file("x.xlsx", b"x"), ["x.xlsx", ".jsonl"]),
    "broken line": (training_text(GOOD * 3 + '{"text": "the c\n' + GOOD), ["train.jsonl:4", "not valid JSON"]),
    "records without usable fields": (training_text('{"body": "x"}\n'), ["train.jsonl:1", "body"]),
    "messages without chat template": (training_text(MESSAGES), ["chat template"]),
    "calibration overlaps test": (calibration_is_test, ["calibration", "test"]),
    "training overlaps test": (training_holds_test, ["train", "test"]),
}


@pytest.mark.parametrize("name", CASES)
def test_data(name, refuses_run):
    refuses_run(*CASES[name])
