"""Data files in every supported format, intact and damaged: arrays, compressed, in shards, by `save_to_disk`."""

import bz2
import gzip
import json
import lzma

import pytest
from helpers.data_files import ROWS, TEXTS, file, read

from tuneprune.data import SourceConfig, read_source
from tuneprune.data.bad_records import LeftOut
from tuneprune.errors import DataError

LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
PRETTY = json.dumps(ROWS, indent=2, ensure_ascii=False).encode()
CSV = 'text\none\nzwölf\n"three ""3"", x"\n'.encode()


PACKED = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


JSON = {
    "an array": ("a.json", json.dumps(ROWS)),
    "an array, pretty": ("a.json", PRETTY),
    "an array, one record a line": ("a.json", b"[\n" + b",\n".join(LINES.strip().split(b"\n")) + b"\n]\n"),
    "an array called JSONL": ("a.jsonl", PRETTY),
    "a byte order mark": ("a.json", b"\xef\xbb\xbf" + PRETTY),
    "Windows line ends": ("a.json", PRETTY.replace(b"\n", b"\r\n")),
    "JSONL with Windows line ends and a mark": ("a.jsonl", b"\xef\xbb\xbf" + LINES.replace(b"\n", b"\r\n")),
    "under data": ("a.json", json.dumps({"data": ROWS})),
    "under data, after other things": (
        "a.json",
        json.dumps({"version": "1.0", "n": 3, "data": ROWS, "x": {"a": []}}, indent=1),
    ),
    "under train": ("a.json", json.dumps({"train": ROWS, "test": [{"text": "another"}]}, indent=2)),
    "pretty objects": ("a.json", "\n".join(json.dumps(row, indent=2) for row in ROWS)),
    "JSONL called JSON": ("a.json", LINES),
    "JSONL under another ending": ("a.ndjson", LINES),
    "JSONL under its long ending": ("a.jsonlines", LINES),
    "capitals in the ending": ("A.JSONL", LINES),
}


@pytest.mark.parametrize(("name", "content"), JSON.values(), ids=JSON)
def test_json_in_every_form(name, content, tmp_path, tokenizer):
    assert read(file(tmp_path, name, content), tokenizer) == TEXTS


def test_a_single_record_with_a_list_is_a_record(tmp_path, chat_tokenizer):
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    for indent in (None, 1):
        path = file(tmp_path, "a.json", json.dumps({"messages": turns}, indent=indent))
        assert len(read(path, chat_tokenizer)) == 1
    lines = (json.dumps({"data": turns}) + "\n") * 2
    config = SourceConfig(path=file(tmp_path, "a.jsonl", lines), fields={"messages": "data"})
    assert len(read_source(config, chat_tokenizer, "train")) == 2


def test_the_split_of_one_object_is_the_one_asked_for(tmp_path, tokenizer):
    path = file(tmp_path, "a.json", json.dumps({"train": ROWS, "validation": ROWS[:1], "test": ROWS[1:]}))
    assert [read(path, tokenizer, split) for split in ("train", "val", "test")] == [TEXTS, TEXTS[:1], TEXTS[1:]]
    with pytest.raises(DataError, match="lists under train, and it is not clear which one is `test`"):
        read(file(tmp_path, "b.json", json.dumps({"train": ROWS})), tokenizer, "test")
    with pytest.raises(DataError, match="lists under data, train, and it is not clear"):
        read(file(tmp_path, "b.json", json.dumps({"data": ROWS, "train": ROWS})), tokenizer)


def test_elements_of_an_array_count_from_one(tmp_path, tokenizer):
    bad = b'[{"text": "a"}, 7, {"text": "b", "text": "c"}, {"text": "\xff"}, {"text": "d"}, {"text": 5}, {"text": "e"}]'
    path, left_out = file(tmp_path, "a.json", bad), LeftOut(drops=True)
    with pytest.raises(DataError, match=r"a\.json:2: the record has to be a JSON object"):
        read(path, tokenizer)
    path.write_bytes(bad.replace(b"7, ", b'{"text": "7"}, ') + b"\n")
    found = read_source(SourceConfig(path=path), tokenizer, "train", left_out)
    assert [(example.index, example.completion) for example in found] == [(1, "a"), (2, "7"), (5, "d"), (7, "e")]
    assert left_out.first == {"a key twice": [3], "not UTF-8": [4], "of the wrong type": [6]}


BROKEN = {
    "cut inside a record": (b'[{"text": "a"}, {"text": "b', "a.json:2: the file is not valid JSON from this record on"),
    "cut after a comma": (b'[{"text": "a"},', "a.json:2: .*the file ends inside it"),
    "no comma": (b'[{"text": "a"} {"text": "b"}]', "a.json:1: .*a comma is missing after it"),
    "more after it": (b'[{"text": "a"}] {"text": "b"}', "a.json:1: .*something follows the array"),
    "deep": (b"[" * 99_999, "nests too deeply"),
    "digits": (b'[{"text": ' + b"9" * 5000 + b"}]", "too many digits"),
    "a list cut off": (b'{"data": [{"text": "a"},', "a.json:2: .*the file ends inside it"),
    "an object cut off": (b'{"data": [{"text": "a"}]', "a.json:1: the file is not valid JSON"),
    "a list twice": (b'{"data": [{"text": "a"}], "data": [{"text": "b"}]}', "appears twice"),
    "pretty, cut off": (b'{\n "text": "a"\n}\n{\n "text"', "a.json:2: the file is not valid JSON"),
    "empty": (b"[]", "has no records"),
}


@pytest.mark.parametrize("drops", [False, True])
@pytest.mark.parametrize(("content", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_array_is_refused(content, message, drops, tmp_path, tokenizer):
    with pytest.raises(DataError, match=message) as refused:
        read(file(tmp_path, "a.json", content), tokenizer, left_out=LeftOut(drops))
    assert "16 MiB" not in str(refused.value)


def test_long_arrays_are_read_piece_by_piece(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr("tuneprune.data.json_files.LONGEST_RECORD", 100)
    rows = [{"text": f"text {n}" + "x" * (n % 50)} for n in range(400)]
    path = file(tmp_path, "a.json", json.dumps(rows, indent=3))
    assert read(path, tokenizer) == [row["text"] for row in rows]
    rows[7] = {"text": "y" * 150}
    file(tmp_path, "a.json", json.dumps(rows))
    with pytest.raises(DataError, match=r"a\.json:8: .*longer than"):
        read(path, tokenizer)


@pytest.mark.parametrize("ending", PACKED)
@pytest.mark.parametrize(("name", "content"), [("a.jsonl", LINES), ("a.json", PRETTY), ("a.csv", CSV)])
def test_compressed_files_are_read(ending, name, content, tmp_path, tokenizer):
    packed = PACKED[ending](content)
    assert read(file(tmp_path, name + ending, packed), tokenizer) == TEXTS
    assert (
        read(file(tmp_path, name + ending, content), tokenizer) == TEXTS
    )  # decompressed by something else, which kept the name
    assert read(file(tmp_path, name, packed), tokenizer) == TEXTS


@pytest.mark.parametrize("ending", PACKED)
def test_damaged_compression_gives_one_sentence(ending, tmp_path, tokenizer):
    long = b"".join(json.dumps({"text": f"{n} {n * n} {n**5}"}).encode() + b"\n" for n in range(5000))
    packed = PACKED[ending](long)
    middle = len(packed) // 2
    for damaged in (packed[:middle], packed[:-3], packed[:middle] + b"\xff" * 99 + packed[middle + 99 :]):
        with pytest.raises(
            DataError, match=r"a\.jsonl\.\w+(: the file cannot be decompressed \(.*\): it is|:\d+: )"
        ) as refused:
            read(file(tmp_path, "a.jsonl" + ending, damaged), tokenizer)
        assert str(refused.value).isprintable()


@pytest.mark.parametrize("ending", PACKED)
@pytest.mark.parametrize("content", [b"\n", b'{"text": "a"}\n', b"["])
def test_a_bomb_does_not_fill_the_memory(ending, content, tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr("tuneprune.data.compressed._ALWAYS_ALLOWED", 2**20)
    path = file(tmp_path, "a.jsonl" + ending, PACKED[ending](content * (2**23 // len(content))))
    with pytest.raises(DataError, match=r"has more than \d+ MiB when decompressed|nests too deeply"):
        read(path, tokenizer)


def test_tables_with_other_separators(tmp_path, tokenizer, caplog):
    rows = [("id\ttext", "1\tone, two", '2\t"a\tb"'), ("id;text", "1;one, two", '2;"a\tb"')]
    for name, lines in (("a.tsv", rows[0]), ("a.tsv.gz", rows[0]), ("a.csv", rows[0]), ("b.csv", rows[1])):
        assert read(file(tmp_path, name, "\r\n".join(lines)), tokenizer) == ["one, two", "a\tb"]
    assert "b.csv: the columns are separated by semicolons" in caplog.text
    assert "a.tsv: the columns" not in caplog.text
    with pytest.raises(DataError, match=r"\(3 instead of 2\)\. Fix it, or quote texts that hold tabs"):
        read(file(tmp_path, "c.tsv", "id\ttext\n1\ta\tb\n"), tokenizer)


HINTS = {
    "a.txt": 'does not say where a document ends; write JSONL with one {"text"',
    "a.txt.gz": "does not say where a document ends",
    "a.gz": "such as data.jsonl.gz",
    "a.jsonl.zst": "decompress it first, or compress it to .gz, .bz2, .xz",
    "a.parquet.gz": "Parquet is already compressed",
    "a.zip": "unpack it",
    "a.tar.gz": "unpack it",
    "a.xlsx": "save the sheet as CSV",
    "a.docx": "convert it to one of them",
    "a": "convert it to one of them",
}


@pytest.mark.parametrize("name", HINTS)
def test_other_files_are_refused_with_advice(name, tmp_path, tokenizer):
    with pytest.raises(
        DataError,
        match=r"unknown kind of data file\. Possible: \.jsonl, \.json, \.ndjson, \.jsonlines, \.csv, \.tsv, \.parquet",
    ) as refused:
        read(file(tmp_path, name, "x"), tokenizer)
    assert HINTS[name] in str(refused.value)
