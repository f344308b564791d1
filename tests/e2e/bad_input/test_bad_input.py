"""Every bad input of every command: exit 2, one sentence with a way out, no traceback, nothing written.

The inputs are in the tables of the other modules of this folder.
"""

import pytest
from e2e.bad_input import (
    bad_commands,
    bad_data,
    bad_exports,
    bad_methods,
    bad_models,
    bad_plans,
    bad_quantised,
    bad_run_files,
    messages,
)
from e2e.refusals import ADVICE, Case, assert_refused

TABLES = (
    bad_commands,
    bad_data,
    bad_exports,
    bad_methods,
    bad_models,
    bad_plans,
    bad_quantised,
    bad_run_files,
)
ROWS = {f"{table.__name__.rpartition('.')[2]}: {name}": row for table in TABLES for name, row in table.ROWS.items()}


ANSWERS = messages.read()


def everything_in(folder):
    return {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}


@pytest.mark.parametrize("name", ROWS)
def test_bad_input(name, tmp_path, model_folder, tuneprune, capsys, monkeypatch, answers):
    row = ROWS[name]
    monkeypatch.delenv("TUNEPRUNE_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    for place, value in (row.replaced or {}).items():
        monkeypatch.setattr(place, value)
    case = Case(tmp_path / "in", model_folder)
    row.change(case)
    model = case.content["model"]
    if isinstance(model, dict):
        model["base"] = model["base"] or str(model_folder)
    places = {"run": case.run_file(), "model": model, "folder": case.folder, "out": tmp_path / "in" / "out"}
    before = everything_in(tmp_path)
    status = tuneprune(*(part.format(**places) for part in row.command.split()))
    sentence = assert_refused(capsys, status, [fragment.format(**places) for fragment in row.says])
    assert "Traceback" not in sentence
    assert ADVICE.search(sentence), sentence
    assert everything_in(tmp_path) == before
    answer = messages.without_places(sentence, tmp_path, model_folder)
    if answers is not None:
        answers[name] = answer
    else:
        assert ANSWERS.get(name) == (answer, "yes"), f"read this answer, then say so in {messages.PAGE.name}: {answer}"


def test_every_answer_in_the_table_is_still_given():
    assert ANSWERS.keys() == ROWS.keys()
