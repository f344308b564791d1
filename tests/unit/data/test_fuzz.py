"""Whatever the bytes of a data file are, it gives examples, or one sentence about what is wrong.

`TUNEPRUNE_FUZZ_EXAMPLES` sets how many files each test makes.
"""

import gzip
import io
import json
import os

import pytest
from faults.recorded import record
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tuneprune.data import DataConfig, SourceConfig, load, read_source
from tuneprune.data.bad_records import LeftOut
from tuneprune.errors import TunePruneError

READ, REFUSED = "read", "refused in a sentence"
EXAMPLES = int(os.environ.get("TUNEPRUNE_FUZZ_EXAMPLES", "100"))
fuzz = settings(
    max_examples=EXAMPLES,
    deadline=20_000,
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
    "conversations",
    "instruction",
    "input",
    "output",
    "system",
    "history",
    "tools",
    "chosen",
]
KINDS = (None, None, None, "nli", "qa", "multiple_choice", "summary")

texts = st.text() | st.sampled_from(["yes", "entailment", "</s>", "\ud800", "\0", " ", "﻿", "a\r\nb\x1b[31m"])
turns = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", ""]), "content": texts}) | (
    st.fixed_dictionaries({"from": st.sampled_from(["human", "gpt", "function_call", ""]), "value": texts})
)
values = st.recursive(
    texts | st.none() | st.booleans() | st.integers() | st.floats() | st.lists(turns, max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=4,
)
records = st.dictionaries(st.sampled_from(NAMES) | texts, values, max_size=4)
written = records.map(lambda record: json.dumps(record).encode())
odd = st.sampled_from([b"[" * 3000, b'{"a":' * 3000, b"9" * 5000, b'"' * 9, b"\xff\xfe", b"{}"])
good = texts.map(lambda text: json.dumps({"text": f"a {text}"}).encode())
lines = st.lists(good, max_size=6) | st.lists(good | written | st.binary(max_size=60) | odd, max_size=6)
cells = st.binary(max_size=12) | st.sampled_from([b'"', b'""', b'"a\nb"', b"text", b"prompt", b"completion", b"\0"])
rows = st.lists(st.lists(cells, max_size=4).map(b",".join), max_size=5)
tables = rows | st.lists(cells, max_size=5).map(lambda found: [b"text", b"good", *found])
ends = st.sampled_from([b"\n", b"\n", b"\r\n", b"\r", b""])


def read(path, tokenizer, content, kind, drops):
    """Read a file of these bytes as training does; it returns the examples or the one-sentence error."""
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
        return REFUSED
    assert all(example.completion.strip() for example in examples)
    json.dumps(data.summary(), allow_nan=False)
    stream = data.stream(data.train_part, batch_size=2, seed=0)
    assert stream.next()["input_ids"].shape[0] == 2
    assert stream.last_origins()
    return READ


def parquet():
    """A valid Parquet file, truncated or overwritten somewhere."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    stream = io.BytesIO()
    pq.write_table(pa.table({"text": ["a good one"] * 20, "n": range(20)}), stream)
    return damaged(stream.getvalue())


def arrow():
    """A valid Arrow stream, truncated or overwritten somewhere."""
    import pyarrow as pa

    stream, table = io.BytesIO(), pa.table({"text": ["a good one"] * 20, "n": range(20)})
    with pa.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table)
    return damaged(stream.getvalue())


def damaged(whole):
    """A file, truncated or overwritten somewhere."""
    places = st.integers(0, len(whole) - 1)
    cut = places.map(lambda at: whole[:at])
    return cut | st.builds(
        lambda at, b: whole[:at] + b + whole[at + len(b) :], places, st.binary(min_size=1, max_size=8)
    )


def arrays():
    """Records in one array or under one key, some of them odd, with various endings."""
    starts = st.sampled_from([b"[", b'{"data": [', b'{"train": [', b'{"n": 1, "rows": [', b"{\n", b" \n["])
    ends = st.sampled_from([b"]", b"]}", b"", b"},", b"] {}"])
    return st.builds(lambda start, parts, end: start + b",\n".join(parts) + end, starts, lines, ends)


FILES = {  # suffixes of files, and their content
    ".jsonl": lambda: st.builds(lambda parts, end: end.join(parts), lines, ends),
    ".csv": lambda: st.builds(lambda parts, end: end.join(parts), tables, ends),
    ".parquet": parquet,
    ".json": arrays,
    ".jsonl.gz": lambda: damaged(gzip.compress(b"".join(b'{"text": "good %d"}\n' % n for n in range(40)))),
    ".arrow": arrow,
}


def outcomes(ending, folder, tokenizer, count):
    """The outcomes for that many files."""
    found = []

    @settings(fuzz, max_examples=count)
    @given(FILES[ending](), st.sampled_from(KINDS), st.booleans())
    def check(content, kind, drops):
        found.append(read(folder / f"a{ending}", tokenizer, content, kind, drops))

    check()
    return found


@pytest.mark.parametrize("ending", FILES)
def test_any_bytes_are_read_or_refused_in_a_sentence(ending, tmp_path, chat_tokenizer):
    assert outcomes(ending, tmp_path, chat_tokenizer, EXAMPLES)


@pytest.mark.campaign
@pytest.mark.parametrize("ending", FILES)
def test_many_files(ending, tmp_path, chat_tokenizer):
    found = outcomes(ending, tmp_path, chat_tokenizer, 1000)
    noted = [{"file": ending, "outcome": outcome} for outcome in found]
    what = "JSON, gzip, CSV, Parquet and Arrow of drawn bytes and values, or damaged: examples, or one sentence"
    assert not record("data files", what, 0, noted, good={READ, REFUSED}, counted="files")
