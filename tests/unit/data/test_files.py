"""Data files in every supported format, intact and damaged: arrays, compressed, in shards, by `save_to_disk`."""

import bz2
import gzip
import json
import lzma

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tuneprune.data import SourceConfig, read_source
from tuneprune.data.bad_records import LeftOut
from tuneprune.errors import ConfigError, DataError

ROWS = [{"text": "one"}, {"text": "zwölf"}, {"text": 'three "3", x'}]
TEXTS = [row["text"] for row in ROWS]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
PRETTY = json.dumps(ROWS, indent=2, ensure_ascii=False).encode()
CSV = 'text\none\nzwölf\n"three ""3"", x"\n'.encode()


PACKED = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


def file(folder, name, content):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read(path, tokenizer, split="train", left_out=None):
    return [example.completion for example in read_source(SourceConfig(path=path), tokenizer, split, left_out)]


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


def parquet(folder, name, rows):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


@pytest.mark.parametrize(
    "names",
    [
        ("train-00000-of-00003.parquet", "train-00001-of-00003.parquet", "train-00002-of-00003.parquet"),
        tuple(f"data/train-0000{n}-of-00003-0123456789abcdef.parquet" for n in range(3)),
        ("train_1.jsonl", "train_2.jsonl", "train_10.jsonl"),
        ("train.00.jsonl.gz", "train.01.jsonl.gz", "train.02.jsonl.gz"),
        ("train/a.jsonl", "train/b.jsonl", "train/c.jsonl"),
        ("train/part-0.parquet", "train/part-1.parquet", "train/part-2.parquet"),
    ],
)
def test_shards_are_read_in_their_order(names, tmp_path, tokenizer):
    for name, row in zip(names, ROWS, strict=True):
        if name.endswith(".parquet"):
            parquet(tmp_path, name, [row])
        else:
            content = json.dumps(row).encode()
            file(tmp_path, name, gzip.compress(content) if name.endswith(".gz") else content)
    file(tmp_path, "test-00000-of-00001.jsonl", '{"text": "a test"}')
    file(tmp_path, "training-notes.jsonl", '{"text": "no shard"}')
    if names[0].startswith("train/"):
        file(tmp_path, "train/._a.jsonl", "what macOS leaves")
    found = read_source(SourceConfig(path=tmp_path), tokenizer, "train")
    assert [(example.completion, example.index) for example in found] == list(zip(TEXTS, (1, 2, 3), strict=True))
    assert read(tmp_path, tokenizer, "test") == ["a test"]


def test_shards_that_do_not_belong_together(tmp_path, tokenizer):
    parquet(tmp_path, "one/train-00000-of-00002.parquet", ROWS)
    with pytest.raises(DataError, match=r"some are missing \(found: train-00000-of-00002.parquet\)"):
        read(tmp_path / "one", tokenizer)
    for name in ("train-00000-of-00002.parquet", "train-00001-of-00003.parquet"):
        parquet(tmp_path, f"two/{name}", ROWS)
    with pytest.raises(DataError, match="names of its shards do not match"):
        read(tmp_path / "two", tokenizer)
    for name in ("train.parquet", "data/train-0.parquet"):
        parquet(tmp_path, f"three/{name}", ROWS)
    with pytest.raises(DataError, match=r"more than one file for the split `train` \(train.parquet, data/train-0"):
        read(tmp_path / "three", tokenizer)
    parquet(tmp_path, "four/train-0.parquet", ROWS)
    file(tmp_path, "four/train-1.parquet", b"PAR1 no")
    with pytest.raises(DataError, match=r"train-1\.parquet: the file is not valid Parquet"):
        read(tmp_path / "four", tokenizer)


def test_a_pattern_names_several_files(tmp_path, tokenizer):
    for index, row in enumerate(ROWS):
        file(tmp_path, f"deep/{index}/a.jsonl", json.dumps(row))
    assert read(tmp_path / "deep/*/a.jsonl", tokenizer) == TEXTS
    assert read(tmp_path / "**/[01]/*.jsonl", tokenizer) == TEXTS[:2]
    with pytest.raises(DataError, match=r"\*\.csv: no file matches this pattern\. "):
        read(tmp_path / "*.csv", tokenizer)
    with pytest.raises(ConfigError, match="leave out `split`"):
        read_source(SourceConfig(path=tmp_path / "deep/*/a.jsonl", split="val"), tokenizer, "train")


def test_folders_written_by_save_to_disk(tmp_path, tokenizer):
    rows = datasets.Dataset.from_list(ROWS)
    rows.save_to_disk(tmp_path / "one")
    rows.select([2, 0]).save_to_disk(tmp_path / "some")
    splits = {"train": rows, "validation": rows.select([1])}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "all", num_shards={"train": 2, "validation": 1})
    assert read(tmp_path / "one", tokenizer) == TEXTS
    assert read(tmp_path / "some", tokenizer) == [TEXTS[2], TEXTS[0]]
    assert read(tmp_path / "all", tokenizer) == TEXTS
    assert read(tmp_path / "all", tokenizer, "val") == [TEXTS[1]]
    with pytest.raises(DataError, match=r"has no split `test` \(found: train, validation\)"):
        read(tmp_path / "all", tokenizer, "test")
    with pytest.raises(ConfigError, match="leave out `split`"):
        read_source(SourceConfig(path=tmp_path / "one", split="val"), tokenizer, "train")
    (arrow,) = (tmp_path / "one").glob("*.arrow")
    assert read(arrow, tokenizer) == TEXTS
    whole = arrow.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"no Arrow at all"):
        arrow.write_bytes(content)
        for path, said in (
            (arrow, "not valid Arrow|no records"),
            (tmp_path / "one", "save_to_disk cannot be read|no records"),
        ):
            with pytest.raises(DataError, match=said):
                read(path, tokenizer)
    (tmp_path / "all" / "train" / "state.json").write_text("{")
    with pytest.raises(DataError, match=r"all: the folder written by save_to_disk cannot be read .*Save the data"):
        read(tmp_path / "all", tokenizer)


def test_class_labels_have_their_names_in_every_file(tmp_path, tokenizer):
    features = datasets.Features(
        premise=datasets.Value("string"),
        hypothesis=datasets.Value("string"),
        label=datasets.ClassLabel(names=["entailment", "neutral", "contradiction"]),
    )
    rows = {"premise": ["It rains."], "hypothesis": ["It is dry."], "label": [2]}
    rows = datasets.Dataset.from_dict(rows, features=features)
    rows.to_parquet(tmp_path / "a.parquet")
    rows.save_to_disk(tmp_path / "saved")
    for path in (tmp_path / "a.parquet", tmp_path / "saved"):
        (example,) = read_source(SourceConfig(path=path, kind="nli"), tokenizer, "train")
        assert example.completion == " false"


def test_conversations_keep_their_form_in_parquet_and_arrow(tmp_path, chat_tokenizer):
    turns = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]
    rows = datasets.Dataset.from_list([{"conversations": turns, "system": None, "text": None}] * 3)
    rows.to_parquet(tmp_path / "a.parquet")
    rows.save_to_disk(tmp_path / "saved")
    for path in (tmp_path / "a.parquet", tmp_path / "saved"):
        assert read(path, chat_tokenizer) == ["ho</s>"] * 3
