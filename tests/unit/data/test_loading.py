import json

import pytest

from tuneprune.data import DataConfig, Example, SourceConfig, load
from tuneprune.errors import DataError


def write(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def config(tmp_path, num_train=40, **more):
    path = write(tmp_path / "train.jsonl", [f"training text {n}" for n in range(num_train)])
    return DataConfig(train=[SourceConfig(path=path)], **more)


def read_back(tokenizer, documents):
    return {tokenizer.decode(document.input_ids, skip_special_tokens=True) for document in documents}


def test_a_tenth_is_held_out_by_content(tmp_path, tokenizer):
    data = load(config(tmp_path), tokenizer, 64)
    train, calibration = read_back(tokenizer, data.train), read_back(tokenizer, data.calibration)
    assert (len(train), len(calibration), train & calibration) == (36, 4, set())
    again = load(config(tmp_path), tokenizer, 64)
    assert read_back(tokenizer, again.calibration) == calibration
    assert data.summary()["calibration"]["held_out_of_train"]


def test_repeated_items_are_held_out_together(tmp_path, tokenizer):
    path = write(tmp_path / "train.jsonl", [f"text {n % 10}" for n in range(100)])
    data = load(DataConfig(train=[SourceConfig(path=path)]), tokenizer, 64)
    assert not read_back(tokenizer, data.train) & read_back(tokenizer, data.calibration)
    assert data.summary()["overlap"]["train_calibration"] == {"items": 0, "passages": 0}


def test_one_prompt_for_everything_can_still_be_held_out(tmp_path, tokenizer):
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps({"prompt": "Tell:", "completion": f" {n}"}) + "\n" for n in range(20)))
    data = load(DataConfig(train=[SourceConfig(path=path)]), tokenizer, 64)
    assert (len(data.train), len(data.calibration)) == (18, 2)


def test_one_example_cannot_be_split(tmp_path, tokenizer):
    with pytest.raises(DataError, match=r"too few different examples \(1 of 1\)"):
        load(config(tmp_path, num_train=1), tokenizer, 64)
    data = load(config(tmp_path, num_train=2), tokenizer, 64)
    assert (len(data.train), len(data.calibration)) == (1, 1)


def test_named_calibration_leaves_training_whole(tmp_path, tokenizer):
    path = write(tmp_path / "calibration.jsonl", ["calibration text", "training text 3"])
    data = load(config(tmp_path, calibration=[SourceConfig(path=path)]), tokenizer, 64)
    assert (len(data.train), len(data.calibration)) == (40, 2)
    assert data.summary()["overlap"]["train_calibration"] == {"items": 1, "passages": 0}


def test_test_items_stop_the_run_or_are_dropped(tmp_path, tokenizer):
    test = [Example("", "Training  text 5", source="task[test]", index=1)]
    with pytest.raises(DataError, match=r"1 of 3\d training examples are test items|1 of 4 calibration"):
        load(config(tmp_path), tokenizer, 64, test)
    data = load(config(tmp_path, test_overlap="drop"), tokenizer, 64, test)
    assert sum(source["dropped"] for source in data.summary()["train"]["sources"]) == 1
    assert "training text 5" not in read_back(tokenizer, [*data.train, *data.calibration])


def test_dropping_everything_is_an_error(tmp_path, tokenizer):
    test = [Example("", f"training text {n}") for n in range(40)]
    with pytest.raises(DataError, match="nothing is left after dropping them"):
        load(config(tmp_path, test_overlap="drop"), tokenizer, 64, test)


def test_weights_reach_every_window(tmp_path, tokenizer):
    long, short = write(tmp_path / "long.jsonl", ["x" * 50]), write(tmp_path / "short.jsonl", ["y"])
    sources = [SourceConfig(path=long, weight=3), SourceConfig(path=short)]
    data = load(DataConfig(train=sources, calibration=[SourceConfig(path=short)]), tokenizer, 26)
    assert data.train_part.weights == [3, 3, 1]
    assert data.summary()["train"]["split"] == 1


def test_the_summary_is_plain_json_and_hashes_content(tmp_path, tokenizer):
    data = load(config(tmp_path), tokenizer, 64, [Example("", "elsewhere")])
    summary = json.loads(json.dumps(data.summary()))
    assert summary["train"]["examples"] == 36
    assert summary["test"] == {"examples": 1, "blank": 0}
    (source,) = summary["train"]["sources"]
    assert source["sha256"] == load(config(tmp_path), tokenizer, 32).summary()["train"]["sources"][0]["sha256"]
    assert source["sha256"] != load(config(tmp_path, 41), tokenizer, 64).summary()["train"]["sources"][0]["sha256"]


def test_streams_know_the_lines_of_their_batches(tmp_path, tokenizer):
    path = write(tmp_path / "train.jsonl", ["x" * 50, "y"])
    data = load(DataConfig(train=[SourceConfig(path=path)], calibration=[SourceConfig(path=path)]), tokenizer, 26)
    stream = data.stream(data.train_part, batch_size=4, seed=0)
    stream.next()
    assert sorted(stream.last_origins()) == [f"{path}:1", f"{path}:2"]


def test_streams_take_the_run_settings(tmp_path, tokenizer):
    data = load(config(tmp_path, packing=False), tokenizer, 64)
    stream = data.stream(data.train_part, batch_size=4, seed=0)
    assert len(stream) == 36
    assert stream.next()["input_ids"].shape[0] == 4
    packed = load(config(tmp_path), tokenizer, 64)
    assert len(packed.stream(packed.train_part, batch_size=4, seed=0)) < 18
