import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from tuneprune.data import DataConfig, SourceConfig, read_source
from tuneprune.errors import ConfigError, DataError


def write(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def test_records_are_read_by_their_fields(tmp_path, tokenizer):
    path = write(
        tmp_path / "mixed.jsonl",
        {"text": "plain"},
        {"prompt": "Q:", "completion": " A", "id": 7},
        {"text": "x"},
    )
    examples = read_source(SourceConfig(path=path), tokenizer, "train")
    assert [(e.prompt, e.completion, e.index) for e in examples] == [
        ("", "plain", 1),
        ("Q:", " A", 2),
        ("", "x", 3),
    ]
    assert examples[0].is_text
    assert not examples[1].is_text
    assert examples[1].where == f"{path}:2"


def test_every_file_kind_gives_the_same_examples(tmp_path, tokenizer):
    records = [{"prompt": "one, two", "completion": "drei"}, {"prompt": 'say "a"\nb', "completion": "ü"}]
    files = [write(tmp_path / "a.jsonl", *records), tmp_path / "a.parquet", tmp_path / "a.csv"]
    pq.write_table(pa.Table.from_pylist(records), files[1])
    files[2].write_text('prompt,completion\n"one, two",drei\n"say ""a""\nb",ü\n', encoding="utf-8")
    read = [read_source(SourceConfig(path=file), tokenizer, "train") for file in files]
    pairs = [[(e.prompt, e.completion) for e in examples] for examples in read]
    assert pairs[0] == [(r["prompt"], r["completion"]) for r in records]
    assert pairs[1] == pairs[0]
    assert pairs[2] == pairs[0]


def test_messages_use_the_chat_template_and_the_last_answer(tmp_path, chat_tokenizer):
    turns = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "2+2?"},
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": "thanks"},
    ]
    path = write(tmp_path / "chat.jsonl", {"messages": turns})
    (example,) = read_source(SourceConfig(path=path), chat_tokenizer, "train")
    assert example.prompt == "<s>[user] hi\n[assistant] hello</s>\n[user] 2+2?\n[assistant] "
    assert example.completion == "4</s>"


def test_folder_split_limit_and_fields(tmp_path, tokenizer):
    for split in ("train", "validation"):
        write(tmp_path / f"{split}.jsonl", *({"q": f"{split} {i}", "a": str(i)} for i in range(10)))
    config = SourceConfig(path=tmp_path, limit=5, fields={"prompt": "q", "completion": "a"})
    assert [e.completion for e in read_source(config, tokenizer, "train")] == ["0", "2", "4", "6", "8"]
    assert read_source(config, tokenizer, "val")[0].prompt == "validation 0"
    assert read_source(config.model_copy(update={"split": "val"}), tokenizer, "train")[0].index == 1


def test_blank_records_are_left_out_with_a_warning(tmp_path, tokenizer, caplog):
    path = write(tmp_path / "a.jsonl", {"text": "a"}, {"text": "  "}, {"prompt": "Q", "completion": ""}, {"text": "b"})
    examples = read_source(SourceConfig(path=path), tokenizer, "train")
    assert [(e.completion, e.index) for e in examples] == [("a", 1), ("b", 4)]
    assert f"{path}: left out: 2 blank: records 2, 3" in caplog.text


BROKEN = {
    "empty file": ("a.jsonl", b"", "has no records"),
    "only blank lines": ("a.jsonl", b"\n\n", "has no records"),
    "only blank texts": ("a.jsonl", b'{"text": " "}\n', r"1 of 1 records cannot be used \(1 blank: record 1\)"),
    "broken line": ("a.jsonl", b'{"text": "a"}\n\n{"text": "b"\n', "a.jsonl:3: the line is not valid JSON"),
    "not an object": ("a.jsonl", b'"text"\n', "a.jsonl:1: the line has to be a JSON object"),
    "not UTF-8": ("a.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', "a.jsonl:2: the line is not UTF-8"),
    "nested": ("a.jsonl", b'{"a":' * 100_000, "a.jsonl:1: .*nests too deeply"),
    "no usable fields": ("a.jsonl", b'{"body": "a"}\n', r"a.jsonl:1: no usable fields \(found: body\)"),
    "prompt only": ("a.jsonl", b'{"prompt": "a"}\n', r"no usable fields \(found: prompt\)"),
    "number as text": ("a.jsonl", b'{"text": 3}\n', "a.jsonl:1: the field `text` has to be a text, got 3"),
    "messages of another shape": (
        "a.jsonl",
        b'{"messages": ["hi"]}\n',
        "`messages` has to be a list of objects",
    ),
    "messages without answer": (
        "a.jsonl",
        b'{"messages": [{"role": "user", "content": "hi"}]}\n',
        "needs an answer with the role `assistant`",
    ),
    "unknown suffix": ("a.xlsx", b"x", r"unknown kind of data file. Possible: .jsonl"),
    "broken parquet": ("a.parquet", b"PAR1 no", "not valid Parquet"),
    "CSV row too short": (
        "a.csv",
        b"prompt,completion\na\n",
        "a.csv:2: the line has another number of columns",
    ),
    "CSV row too long": ("a.csv", b"text\na,b\n", "a.csv:2: the line has another number of columns"),
    "CSV not UTF-8": ("a.csv", b"text\n\xff\n", "not UTF-8"),
    "CSV header only": ("a.csv", b"text\n", "has no records"),
}


@pytest.mark.parametrize(("name", "content", "message"), BROKEN.values(), ids=BROKEN)
def test_unusable_files_are_named(tmp_path, chat_tokenizer, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_source(SourceConfig(path=path), chat_tokenizer, "train")


@pytest.mark.parametrize(
    ("name", "said"), [("a.jsonl", "there is no such data file"), ("no/*.jsonl", "no file matches this pattern")]
)
def test_a_relative_path_is_refused_with_the_place_where_it_was_looked_for(
    tmp_path, monkeypatch, tokenizer, name, said
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as caught:
        read_source(SourceConfig(path=name), tokenizer, "train")
    assert f"{name}: {said} in {tmp_path}. " in str(caught.value)


def test_missing_file_split_and_column(tmp_path, tokenizer):
    with pytest.raises(DataError, match=r"nothing\.jsonl: there is no such data file\. "):
        read_source(SourceConfig(path=tmp_path / "nothing.jsonl"), tokenizer, "train")
    path = write(tmp_path / "train.jsonl", {"text": "a"})
    with pytest.raises(DataError, match=r"has no split `test` \(found: train\.jsonl\)"):
        read_source(SourceConfig(path=tmp_path, split="test"), tokenizer, "train")
    with pytest.raises(ConfigError, match="is one file or data set: leave out `split`"):
        read_source(SourceConfig(path=path, split="test"), tokenizer, "train")
    with pytest.raises(DataError, match=r"no column `body` \(columns: text\)"):
        read_source(SourceConfig(path=path, fields={"text": "body"}), tokenizer, "train")


def test_messages_need_a_chat_template(tmp_path, tokenizer):
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    path = write(tmp_path / "chat.jsonl", {"messages": turns})
    with pytest.raises(ConfigError, match=r"chat\.jsonl:1: the data holds messages, but the tokenizer has no chat"):
        read_source(SourceConfig(path=path), tokenizer, "train")


def test_unknown_names(monkeypatch, tmp_path, tokenizer):
    monkeypatch.setenv("TUNEPRUNE_DATA", str(tmp_path))
    with pytest.raises(ConfigError, match=r"unknown source `pubmedqq`\. Did you mean `pubmedqa`\?"):
        read_source(SourceConfig(source="pubmedqq"), tokenizer, "train")
    with pytest.raises(DataError, match=r"rqe: not found in \$TUNEPRUNE_DATA"):
        read_source(SourceConfig(source="rqe"), tokenizer, "train")
    write(tmp_path / "train.jsonl", {"text": "a"})
    with pytest.raises(ConfigError, match="unknown source"):
        read_source(SourceConfig(source=".."), tokenizer, "train")


def test_own_folder_beside_the_named_sources(monkeypatch, tmp_path, tokenizer):
    (tmp_path / "notes").mkdir()
    write(tmp_path / "notes" / "train.jsonl", {"text": "a note"})
    monkeypatch.setenv("TUNEPRUNE_DATA", str(tmp_path))
    (example,) = read_source(SourceConfig(source="notes"), tokenizer, "train")
    assert (example.completion, example.where) == ("a note", "notes[train]:1")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "exactly one of"),
        ({"path": "a.jsonl", "source": "rqe"}, "exactly one of"),
        ({"source": "rqe", "kind": "nli"}, "own wording"),
        ({"source": "rqe", "weight": 0}, "greater than 0"),
        ({"source": "rqe", "weight": float("nan")}, "finite number"),
        ({"source": "rqe", "limit": 0}, "greater than 0"),
        ({"source": "rqe", "split": "dev"}, "'train', 'val' or 'test'"),
        ({"source": "rqe", "splits": "val"}, "Extra inputs"),
    ],
)
def test_wrong_source_configs(values, message):
    with pytest.raises(ValidationError, match=message):
        DataConfig.model_validate({"train": [values]})


def test_training_needs_a_source():
    with pytest.raises(ValidationError, match="at least 1 item"):
        DataConfig(train=[])


def test_hub_sets_come_with_label_names_and_their_own_split_names(monkeypatch, tokenizer):
    import datasets

    features = datasets.Features(
        premise=datasets.Value("string"),
        hypothesis=datasets.Value("string"),
        label=datasets.ClassLabel(names=["entailment", "neutral", "contradiction"]),
    )
    rows = datasets.Dataset.from_dict(
        {"premise": ["It rains."], "hypothesis": ["It is dry."], "label": [2]}, features=features
    )
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda name, subset: ["train", "validation"])
    monkeypatch.setattr(datasets, "load_dataset", lambda name, subset, split: rows)
    config = SourceConfig(source="owner/inference:small", kind="nli", split="val")
    (example,) = read_source(config, tokenizer, "train")
    assert (example.completion, example.source) == (" false", "owner/inference:small[val]")
    with pytest.raises(DataError, match=r"no split `test` \(found: train, validation\)"):
        read_source(config.model_copy(update={"split": "test"}), tokenizer, "train")


def test_an_unreachable_hub_set_gives_one_sentence(monkeypatch, tokenizer):
    import datasets

    def refuse(name, subset):
        raise ConnectionError("no network\nlong trace")

    monkeypatch.setattr(datasets, "get_dataset_split_names", refuse)
    with pytest.raises(DataError, match=r"owner/x: the hub data set cannot be loaded \(no network\)\. Check its name"):
        read_source(SourceConfig(source="owner/x"), tokenizer, "train")


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # a time limit that expired during garbage collection
@pytest.mark.parametrize(
    ("template", "error", "message"),
    [
        ("{{ messages.__class__.__mro__[1].__subclasses__() }}", DataError, "refuses these messages"),
        (
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
            ConfigError,
            "more than 0.2 s",
        ),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", DataError, "refuses these messages"),
        ("{{ messages[99].content.x.y }}", DataError, "refuses these messages"),
        ("{{ 1 / 0 }}", DataError, "refuses these messages"),
        ("{% include '/etc/passwd' %}", DataError, "refuses these messages"),
        ("{% for", ConfigError, "chat template is broken"),
    ],
)
def test_an_untrusted_template_has_no_access_and_a_time_limit(
    template, error, message, tmp_path, chat_tokenizer, monkeypatch
):
    monkeypatch.setattr("tuneprune.data.chat_template.PATIENCE_S", 0.2)
    monkeypatch.setattr(chat_tokenizer, "chat_template", template)
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    path = write(tmp_path / "chats.jsonl", {"messages": turns})
    with pytest.raises(error, match=message):
        read_source(SourceConfig(path=path), chat_tokenizer, "train")
