"""Data in several files, and in folders written by `save_to_disk`."""

import gzip
import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.data_files import ROWS, TEXTS, file, read

from tuneprune.data import SourceConfig, read_source
from tuneprune.errors import ConfigError, DataError


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
