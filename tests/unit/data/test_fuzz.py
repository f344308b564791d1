"""Whatever the bytes of a data file are, there are examples, or one sentence about what is wrong with them.

`TUNEPRUNE_FUZZ_EXAMPLES` sets how many files each test makes.
"""

import json
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tuneprune.data import DataConfig, SourceConfig, load, read_source
from tuneprune.data.unusable import LeftOut
from tuneprune.errors import TunePruneError

EXAMPLES = int(os.environ.get("TUNEPRUNE_FUZZ_EXAMPLES", "100"))
fuzz = settings(
    max_examples=EXAMPLES,
    deadline=5000,
    derandomize="TUNEPRUNE_FUZZ_EXAMPLES" not in os.environ,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
NAMES = [
    "text",
    "prompt",
    "completion",
    "messages",
    "premise",
    "hypothesis",
    "answer",
    "choices",
    "context",
    "question",
]
KINDS = (None, "nli", "qa", "multiple_choice", "summary")

texts = st.text() | st.sampled_from(["yes", "entailment", "</s>", "\ud800", "\0", " ", "﻿", "a\r\nb\x1b[31m"])
turns = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", ""]), "content": texts})
values = st.recursive(
    texts | st.none() | st.booleans() | st.integers() | st.floats() | st.lists(turns, max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=4,
)
records = st.dictionaries(st.sampled_from(NAMES) | texts, values, max_size=4)
written = records.map(lambda record: json.dumps(record).encode())
odd = st.sampled_from([b"[" * 3000, b'{"a":' * 3000, b"9" * 5000, b'"' * 9, b"\xff\xfe", b"{}"])
lines = st.lists(written | st.binary(max_size=60) | odd, max_size=5)
cells = st.binary(max_size=12) | st.sampled_from([b'"', b'""', b'"a\nb"', b"text", b"prompt", b"completion", b"\0"])
tables = st.lists(st.lists(cells, max_size=4).map(b",".join), max_size=5)
ends = st.sampled_from([b"\n", b"\r\n", b"\r", b""])


def read(path, tokenizer, content, kind, drops):
    """Read a file of these bytes as training does; only a sentence for the user may come out."""
    path.write_bytes(content)
    config, sentence = SourceConfig(path=path, kind=kind), ""
    try:
        examples = read_source(config, tokenizer, "train", LeftOut(drops=drops))
        data = load(DataConfig(train=[config], calibration=[config], unusable="drop"), tokenizer, 32)
    except TunePruneError as error:
        sentence = str(error)
    if sentence:
        assert sentence.isprintable()
        assert len(sentence) < 2000
        return
    assert all(example.completion.strip() for example in examples)
    json.dumps(data.summary(), allow_nan=False)
    stream = data.stream(data.train_part, batch_size=2, seed=0)
    assert stream.next()["input_ids"].shape[0] == 2
    assert stream.last_origins()


@pytest.mark.parametrize(("ending", "content"), [(".jsonl", lines), (".csv", tables)], ids=["jsonl", "csv"])
def test_any_bytes_are_read_or_refused_in_a_sentence(ending, content, tmp_path, chat_tokenizer):
    @fuzz
    @given(content, ends, st.sampled_from(KINDS), st.booleans())
    def check(parts, end, kind, drops):
        read(tmp_path / f"a{ending}", chat_tokenizer, end.join(parts), kind, drops)

    check()


def test_damaged_parquet_is_read_or_refused_in_a_sentence(tmp_path, chat_tokenizer):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"text": ["a good one"] * 20, "n": range(20)}), tmp_path / "whole.parquet")
    whole = (tmp_path / "whole.parquet").read_bytes()

    @fuzz
    @given(st.integers(0, len(whole) - 1), st.binary(min_size=1, max_size=8), st.booleans())
    def check(at, damage, cuts):
        content = whole[:at] if cuts else whole[:at] + damage + whole[at + len(damage) :]
        read(tmp_path / "a.parquet", chat_tokenizer, content, None, True)

    check()
