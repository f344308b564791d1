"""Data paths with `~` and environment variables in a run file."""

import pytest
from helpers.toy_bytes import byte_level_tokenizer
from pydantic import ValidationError

from tuneprune.data import SourceConfig, read_source
from tuneprune.data.suites import TaskSpec, load_task


@pytest.fixture(scope="module")
def tokenizer():
    return byte_level_tokenizer(1, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize("written", ["~/sets/a.jsonl", "$SETS/a.jsonl", "${SETS}/a.jsonl", "${SETS}/$WHICH.jsonl"])
def test_home_and_variables_are_expanded(written, tmp_path, monkeypatch, tokenizer):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SETS", str(tmp_path / "sets"))
    monkeypatch.setenv("WHICH", "a")
    (tmp_path / "sets").mkdir()
    (tmp_path / "sets" / "a.jsonl").write_text('{"text": "found"}\n')
    assert read_source(SourceConfig(path=written), tokenizer, "train")[0].completion == "found"
    task = TaskSpec(path=written, kind="perplexity")
    assert load_task(task, tokenizer)[0].completion == "found"


@pytest.mark.parametrize("value", [None, ""])
@pytest.mark.parametrize("written", ["$NOT_SET_HERE/a.jsonl", "sets/${NOT_SET_HERE}.jsonl"])
@pytest.mark.parametrize("kind", [SourceConfig, lambda **path: TaskSpec(kind="perplexity", **path)])
def test_a_variable_that_is_not_set_is_named(kind, written, value, monkeypatch):
    monkeypatch.delenv("NOT_SET_HERE", raising=False)
    if value is not None:
        monkeypatch.setenv("NOT_SET_HERE", value)
    with pytest.raises(
        ValidationError, match=r"1 validation error.*\n.*\n.*the variable `\$NOT_SET_HERE` .* is not set"
    ):
        kind(path=written)


def test_an_unknown_user_is_refused():
    with pytest.raises(ValidationError, match=r"the home folder in the path ~nobody-here/a\.jsonl is unknown"):
        SourceConfig(path="~nobody-here/a.jsonl")


def test_a_file_with_a_tilde_or_dollar_in_its_name_is_found(tmp_path, monkeypatch, tokenizer):
    monkeypatch.chdir(tmp_path)
    for name in ("a$b.jsonl", "a[1].jsonl", "~.jsonl"):
        (tmp_path / name).write_text('{"text": "found"}\n')
        assert read_source(SourceConfig(path=name), tokenizer, "train")[0].completion == "found"
    assert str(SourceConfig(path="5$ off.jsonl").path) == "5$ off.jsonl"
