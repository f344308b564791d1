"""Data that is missing, unreadable, broken, or shared between training and test."""

import gzip
import json

from e2e.refusals import Row, all_of, holding, set_to

GOOD = json.dumps({"text": "the cat sat"}) + "\n"
ALPACA = json.dumps({"instruction": "name it", "input": "the cat", "output": "a cat"}) + "\n"
MESSAGES = json.dumps({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}) + "\n"
CLAIM = {"premise": "it rains", "hypothesis": "it is wet", "answer": "entailment"}
DROP = set_to("data.unusable", "drop")


def training(text):
    return lambda case: case.write(text)


def data_file(name, content):
    """Replace the training data with a data file."""

    def change(case):
        holding(name, content)(case)
        case.content["data"]["train"] = [{"path": str(case.folder / name)}]

    return change


def source(**options):
    """Set options of the training source."""
    return lambda case: case.content["data"]["train"][0].update(options)


def task(content, **options):
    """Replace the test data with a data file."""

    def change(case):
        holding("test.jsonl", content)(case)
        case.content["evaluate"]["tasks"][0].update(options)

    return change


def calibration_is_test(case):
    case.content["data"]["calibration"] = [{"path": str(case.folder / "test.jsonl")}]


def training_holds_test(case):
    case.write((case.folder / "train.jsonl").read_text() + (case.folder / "test.jsonl").read_text())


def folder_of_splits(*names):
    def change(case):
        for name in names:
            holding(f"splits/{name}", GOOD)(case)
        (case.folder / "splits").mkdir(exist_ok=True)
        case.content["data"]["train"] = [{"path": str(case.folder / "splits")}]

    return change


def claims(*answers):
    lines = "".join(json.dumps(CLAIM | {"answer": answer}) + "\n" for answer in answers)
    return all_of(training(lines), source(kind="nli"))


ROWS = {
    "summary too long for the model": Row(
        ["clinic_summary", "max_new_tokens=128", "context of 128"],
        set_to("evaluate", {"tasks": [{"source": "clinic_summary", "max_new_tokens": 128}]}),
    ),
    "missing file": Row(["nowhere.jsonl", "no such data file"], set_to("data.train", [{"path": "nowhere.jsonl"}])),
    "empty file": Row(["train.jsonl", "no records"], training("")),
    "file of blank lines": Row(["train.jsonl", "no records"], training("\n\n")),
    "other characters": Row(["train.jsonl"], training("\udcff".encode("utf8", "surrogatepass").decode("latin1"))),
    "UTF-16": Row(["x.jsonl", "UTF-16", "Save it as UTF-8"], data_file("x.jsonl", GOOD.encode("utf16"))),
    "Latin-1": Row(
        ["x.jsonl:2", "not UTF-8"], data_file("x.jsonl", GOOD.encode() + '{"text": "größer"}\n'.encode("latin1"))
    ),
    "gzip that is cut off": Row(
        ["x.jsonl.gz", "truncated", "copy it again"], data_file("x.jsonl.gz", gzip.compress(GOOD.encode() * 99)[:-9])
    ),
    "Zstandard": Row(["x.jsonl.zst", "decompress it first"], data_file("x.jsonl.zst", b"\x28\xb5\x2f\xfd")),
    "a JSON array that is cut off": Row(
        ["x.json:2", "not valid JSON", "ends inside"], data_file("x.json", f"[\n{GOOD},")
    ),
    "plain text": Row(["x.txt", "where a document ends", "write JSONL"], data_file("x.txt", "a text")),
    "a pattern that fits nothing": Row(
        ["*.jsonl", "no file matches"], set_to("data.train", [{"path": "none/*.jsonl"}])
    ),
    "shards of which one is missing": Row(
        ["train-00000-of-00002.jsonl", "some are missing"], folder_of_splits("train-00000-of-00002.jsonl")
    ),
    "a variable that is not set": Row(
        ["`$NOT_SET_HERE`", "is not set", "Set it"], set_to("data.train", [{"path": "$NOT_SET_HERE/a.jsonl"}])
    ),
    "an unset variable in a test set": Row(
        ["`$NOT_SET_HERE`", "is not set"], set_to("evaluate.tasks", [{"kind": "nli", "path": "$NOT_SET_HERE/a.jsonl"}])
    ),
    "a mapping that loses the input": Row(
        ["train.jsonl:1", "`input` is not blank", "`instruction`"],
        all_of(training(ALPACA), source(fields={"prompt": "instruction", "completion": "output"})),
    ),
    "more than one form": Row(
        ["train.jsonl:1", "could be meant (instruction, question)", "`fields`"],
        training(ALPACA.replace('"input"', '"question"')),
    ),
    "an unknown speaker": Row(
        ["train.jsonl:1", "by 'moon'", "Possible: user"],
        training('{"conversations": [{"from": "moon", "value": "hi"}]}\n'),
    ),
    "zeros": Row(["x.jsonl:1", "zero bytes"], data_file("x.jsonl", b"\0" * 512)),
    "broken parquet": Row(["x.parquet", "Parquet"], data_file("x.parquet", b"PAR1 no")),
    "unknown format": Row(["x.xlsx", ".jsonl"], data_file("x.xlsx", b"x")),
    "open quote in a CSV": Row(["x.csv:3", "not valid CSV"], data_file("x.csv", 'text\nfine\n"open\nfine\n')),
    "CSV row of another width": Row(["x.csv:3", "(2 instead of 1)"], data_file("x.csv", "text\nfine\na,b\n")),
    "CSV with a column twice": Row(["x.csv:1", "`text` twice"], data_file("x.csv", "text,text\na,b\n")),
    "broken line": Row(
        ["train.jsonl:4", "not valid JSON", "data.unusable: drop"],
        training(GOOD * 3 + '{"text": "the c\n' + GOOD),
    ),
    "key twice": Row(["train.jsonl:1", "`text` twice"], training('{"text": "a", "text": "b"}\n')),
    "half a character": Row(["train.jsonl:1", "surrogate"], training('{"text": "\\ud800"}\n')),
    "number with too many digits": Row(["train.jsonl:1", "too many digits"], training('{"text": ' + "9" * 5000 + "}")),
    "deep nesting": Row(["train.jsonl:1", "nests too deeply"], training('{"text": ' + "[" * 99_999)),
    "huge line": Row(["train.jsonl:2", "longer than 16 MiB"], training(GOOD + '{"text": "' + "a" * 2**24 + '"}')),
    "records without usable fields": Row(["train.jsonl:1", "body"], training('{"body": "x"}\n')),
    "text that is a number": Row(["train.jsonl:1", "has to be a text, got 3"], training('{"text": 3}\n')),
    "fields that are not there": Row(
        ["train.jsonl:1", "no column `body`", "`fields`"], source(fields={"text": "body"})
    ),
    "answer outside the choices": Row(["train.jsonl:2", "'perhaps'", "entailment"], claims("neutral", "perhaps")),
    "mostly broken lines, dropped": Row(
        ["4 of 7 records", "4 not JSON: records 4, 5, 6, 7"], all_of(training(GOOD * 3 + "no\n" * 4), DROP)
    ),
    "mostly blank": Row(["train.jsonl", "2 of 3 records", "2 blank"], training(GOOD + '{"text": " "}\n' * 2)),
    "texts that the tokenizer does not know": Row(
        ["train.jsonl", "has no tokens for 2 of 3", "Use a model"], training(GOOD + '{"text": "123"}\n' * 2)
    ),
    "broken test item, though training drops": Row(
        ["test.jsonl:2", "not valid JSON"], all_of(task(GOOD + "no\n"), DROP)
    ),
    "messages without chat template": Row(["chat template"], training(MESSAGES)),
    "calibration overlaps test": Row(["calibration", "test", "data.test_overlap"], calibration_is_test),
    "training overlaps test": Row(["train", "test", "data.test_overlap"], training_holds_test),
    "nothing but test items": Row(
        ["every example is a test item"],
        all_of(set_to("data.test_overlap", "drop"), lambda c: c.write((c.folder / "test.jsonl").read_text())),
    ),
    "the same record again and again": Row(
        ["too few different examples (1 of 99)", "name a calibration source"],
        all_of(training(GOOD * 99), set_to("data.calibration", [])),
    ),
    "too few to hold some out": Row(
        ["too few different examples (1 of 1)", "name a calibration source"],
        all_of(training(GOOD), set_to("data.calibration", [])),
    ),
    "folder without the split": Row(["no split `train`", "test.jsonl"], folder_of_splits("test.jsonl")),
    "empty folder": Row(["no split `train`", "none"], folder_of_splits()),
    "folder with two files for a split": Row(
        ["more than one file for the split `train`", "Name one"], folder_of_splits("train.jsonl", "train.csv")
    ),
    "split of a file": Row(["is one file", "leave out `split`"], source(split="train")),
    "unknown source": Row(["`pubmedq`", "Did you mean `pubmedqa`?"], set_to("data.train", [{"source": "pubmedq"}])),
    "named set without its folder": Row(
        ["pubmedqa", "$TUNEPRUNE_DATA", "Set it"], set_to("data.train", [{"source": "pubmedqa"}])
    ),
    "hub set without a network": Row(
        ["nobody/nothing", "cannot be loaded", "Check"], set_to("data.train", [{"source": "nobody/nothing"}])
    ),
    "source without origin": Row(["exactly one of `path`"], set_to("data.train", [{"weight": 1}])),
    "source of two origins": Row(["exactly one of `path`"], source(source="clinic_text")),
    "own wording of a named set": Row(
        ["has its own wording", "leave out"], set_to("data.train", [{"source": "clinic_nli", "kind": "nli"}])
    ),
    "no source": Row(["`data.train`", "at least 1 item"], set_to("data.train", [])),
    "weight of nothing": Row(["weight", "greater than 0"], source(weight=0)),
    "weight without end": Row(["weight", "finite"], source(weight=float("inf"))),
    "limit of nothing": Row(["limit", "greater than 0"], source(limit=0)),
    "unknown way with unusable records": Row(["data.unusable", "'error' or 'drop'"], set_to("data.unusable", "skip")),
    "unknown way with duplicates": Row(["data.duplicates", "'keep' or 'drop'"], set_to("data.duplicates", "error")),
    "unknown way with test items": Row(["data.test_overlap", "'error' or 'drop'"], set_to("data.test_overlap", "keep")),
}
