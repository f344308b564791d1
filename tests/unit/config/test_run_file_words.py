"""Run files as people write them: keys of other tools, numbers, empty values, short forms."""

import datetime
import json
from pathlib import Path

import pytest
import yaml

from tuneprune.config import RunConfig, load_recover_file, load_run_file, parse
from tuneprune.config.other_tools import advice
from tuneprune.errors import ConfigError

CONTENT = {
    "model": "base",
    "method": "random",
    "data": {"train": [{"path": "train.jsonl"}]},
    "evaluate": {"suite": "clinic"},
}


def changed(path, value):
    content = json.loads(json.dumps(CONTENT))
    *parents, leaf = path.split(".")
    section = content
    for parent in parents:
        section = section.setdefault(parent, {})
    section[leaf] = value
    return content


def refusal(path, value):
    with pytest.raises(ConfigError) as told:
        parse(changed(path, value), "run.yaml")
    return str(told.value)


FOREIGN = {
    "tune.lr": "tune.learning_rate",
    "lr": "tune.learning_rate",
    "learning_rate": "tune.learning_rate",
    "tune.num_train_epochs": "tune.epochs",
    "num_epochs": "tune.epochs",
    "tune.max_steps": "tune.steps",
    "steps": "tune.steps",
    "tune.gradient_accumulation_steps": "tune.micro_batch_size",
    "tune.per_device_train_batch_size": "tune.batch_size",
    "tune.warmup_ratio": "tune.warmup_share",
    "tune.warmup_steps": "tune.warmup_share",
    "tune.max_seq_length": "tune.max_length",
    "tune.lora.r": "tune.lora.rank",
    "tune.lora_alpha": "tune.lora.alpha",
    "lora": "tune.lora",
    "tune.lora.lora_dropout": "tune.lora.dropout",
    "tune.target_modules": "tune.lora.target_modules",
    "tune.bf16": "tune.precision",
    "fp16": "tune.precision",
    "tune.optim": "AdamW",
    "tune.lr_scheduler_type": "cosine",
    "tune.seed": "`seed`",
    "budget.sparsity": "budget.keep: 0.6",
    "pruning_ratio": "budget.keep: 0.6",
    "budget.ratio": "budget.keep: 0.6",
    "method.sparsity": "budget.keep: 0.6",
    "keep": "budget.keep",
    "model_name_or_path": "`model`",
    "output_dir": "--out FOLDER",
    "dataset": "data.train",
    "tune.logging_steps": "tune.log_every",
    "eval": "evaluate.tasks",
    "test": "evaluate.tasks",
    "Model-Name": "`model`",
}


@pytest.mark.parametrize(("key", "ours"), FOREIGN.items())
def test_a_key_of_another_tool_is_answered_with_ours(key, ours):
    content = CONTENT | {"method": {"name": "random"}} if key.startswith("method") else CONTENT
    content = json.loads(json.dumps(content))
    *parents, leaf = key.split(".")
    section = content
    for parent in parents:
        section = section.setdefault(parent, {})
    section[leaf] = 0.4
    with pytest.raises(ConfigError) as told:
        parse(content, "run.yaml")
    said = str(told.value)
    assert f"unknown key `{key}`: " in said
    assert ours in said
    assert "Did you mean" not in said


def test_every_key_that_is_suggested_exists():
    from tuneprune.config import other_tools

    for ours in other_tools._KEYS:
        section = RunConfig
        for part in ours.partition(":")[0].split("."):
            assert part in section.model_fields, ours
            section = section.model_fields[part].annotation
    assert advice("nonsense", 1) is None
    assert "keep = 1 - sparsity" in advice("sparsity", "half")


@pytest.mark.parametrize(
    ("path", "written", "read"),
    [
        ("tune.learning_rate", "1e-4", 1e-4),
        ("tune.learning_rate", "'1e-4'", 1e-4),
        ("tune.steps", "1e3", 1000),
        ("tune.steps", "1.5e3", 1500),
        ("tune.steps", "1_000", 1000),
        ("tune.batch_size", "8.0", 8),
        ("seed", '"0"', 0),
        ("budget.keep", '"0.6"', 0.6),
        ("budget.keep", "60%", 0.6),
        ("budget.keep", "'62.5 %'", 0.625),
        ("budget.min_keep", "0%", 0.0),
        ("tune.warmup_share", "3%", 0.03),
        ("speed", "no", False),
        ("speed", "off", False),
        ("speed", "'yes'", True),
        ("tune.gradient_checkpointing", "on", True),
        ("recover", "~", None),
        ("tune", "", RunConfig.model_validate(CONTENT).tune),
        ("budget", "null", RunConfig.model_validate(CONTENT).budget),
        ("export", "hf", ["hf"]),
        ("evaluate.limit", "~", None),
    ],
)
def test_values_are_read_as_they_are_meant(path, written, read, tmp_path):
    run_file = tmp_path / "run.yaml"
    run_file.write_text(yaml.safe_dump(changed(path, "HERE")).replace("HERE", written))
    for config in (load_run_file(run_file), load_run_file(run_file, [f"{path}={written}"])):
        found = config
        for part in path.split("."):
            found = getattr(found, part)
        assert found == read


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("budget.keep", "0%", "greater than 0"),
        ("budget.keep", "160%", "less than or equal to 1"),
        ("budget.keep", 60, "Write a share as 0.6 or 60%"),
        ("budget.keep", "60 percent", "number"),
        ("model", None, "`model` is empty. Give it a value. A `~` alone is an empty value in YAML"),
        ("model", datetime.date(2024, 1, 1), "YAML reads this as a date; put a text in quotes"),
        ("model", False, "YAML reads yes, no, on and off as true and false; put a text in quotes"),
        ("space", True, "put a text in quotes"),
        ("tune.steps", None, "`tune.steps` is empty"),
        ("tune.steps", "1,000", "without separators and with a point, such as 1000"),
        ("tune.learning_rate", "0,001", "with a point, such as 1000 or 0.001"),
        ("tune.steps", "None", "Leave the key out for no value"),
        ("tune.steps", "$STEPS", "Environment variables"),
        ("tune.steps", True, "`tune.steps` has to be a number, got True. Write the number"),
        ("tune.steps", [300], "`tune.steps`: Input should be a valid integer"),
        ("tune", [1], "`tune` is a section with the keys steps"),
        ("data", "train.jsonl", "`data` is a section with the keys train, calibration"),
        ("evaluate", "test.jsonl", "`evaluate` is a section with the keys suite, tasks"),
        ("evaluate", {"tasks": {"source": "pubmedqa"}}, "`evaluate.tasks` is a list: put `- ` before each"),
        ("evaluate.suite", 3, "`evaluate.suite`: "),
        ("data.train", 3, "`data.train` is a list"),
        ("data.train", None, "`data.train` is empty"),
        ("method", 3, "`method` is a section"),
    ],
)
def test_invalid_values_are_refused_with_what_to_write(path, value, said):
    content = changed("seed", 0)
    *parents, leaf = path.split(".")
    section = content
    for parent in parents:
        section = section.setdefault(parent, {})
    section[leaf] = value
    with pytest.raises(ConfigError) as told:
        parse(content, "run.yaml")
    assert said in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("data/train.jsonl", [{"path": "data/train.jsonl"}]),
        (["a.jsonl", {"path": "b.csv", "weight": 2.0}], [{"path": "a.jsonl"}, {"path": "b.csv", "weight": 2.0}]),
        ({"path": "a.jsonl"}, [{"path": "a.jsonl"}]),
        ("pubmedqa", [{"source": "pubmedqa"}]),
        ("owner/name", [{"source": "owner/name"}]),
        ("owner/name:part", [{"source": "owner/name:part"}]),
        ("./folder", [{"path": "./folder"}]),
    ],
)
def test_sources_may_be_paths_alone(written, read):
    for key in ("train", "calibration"):
        config = RunConfig.model_validate(CONTENT | {"data": {"train": "x.jsonl", key: written}})
        given = [source.model_dump(exclude_defaults=True) for source in getattr(config.data, key)]
        assert given == [{k: Path(v) if k == "path" else v for k, v in source.items()} for source in read]


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("data.train.0.path=other.jsonl", Path("other.jsonl")),
        ("data.train=[other.jsonl]", Path("other.jsonl")),
        ("data.train=other.jsonl", Path("other.jsonl")),
    ],
)
def test_overrides_reach_into_lists(override, read, tmp_path):
    for train in ([{"path": "train.jsonl"}], ["train.jsonl"], "train.jsonl"):
        run_file = tmp_path / "run.yaml"
        run_file.write_text(yaml.safe_dump(CONTENT | {"data": {"train": train}}))
        assert load_run_file(run_file, [override]).data.train[0].path == read
    with pytest.raises(ConfigError, match=r"`data.train` is a list of 1; name an entry by its number"):
        load_run_file(run_file, ["data.train.first.path=x"])
    with pytest.raises(ConfigError, match=r"is a list of 1"):
        load_run_file(run_file, ["data.train.1.path=x"])


@pytest.mark.parametrize(
    "data",
    [
        yaml.safe_dump(CONTENT).replace("\n", "\r\n").encode(),
        b"\xef\xbb\xbf" + yaml.safe_dump(CONTENT).encode(),
        yaml.safe_dump(CONTENT).encode("utf-16"),
        b"\xfe\xff" + yaml.safe_dump(CONTENT).encode("utf-16-be"),
        json.dumps(CONTENT).encode(),
        json.dumps(CONTENT, indent="\t").encode(),
    ],
    ids=["crlf", "bom", "utf16", "utf16-be", "json", "json with tabs"],
)
def test_files_of_other_editors_are_read(data, tmp_path):
    (tmp_path / "run.yaml").write_bytes(data)
    assert load_run_file(tmp_path / "run.yaml") == RunConfig.model_validate(CONTENT)


def test_tabs_are_reported_as_tabs(tmp_path):
    (tmp_path / "run.yaml").write_text("tune:\n\tsteps: 3\n")
    with pytest.raises(ConfigError, match=r"line 2: .*it is a tab, and YAML is indented with spaces"):
        load_run_file(tmp_path / "run.yaml")


def test_recovery_suggests_our_keys_too(tmp_path):
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(CONTENT | {"recover": {"lr": 1e-3}}))
    with pytest.raises(ConfigError, match=r"unknown key `tune.lr`: write `tune.learning_rate`"):
        load_recover_file("small", tmp_path / "run.yaml")


def test_an_override_keeps_the_adapter_that_the_model_is(tmp_path):
    (tmp_path / "adapter").mkdir()
    settings = tmp_path / "adapter" / "adapter_config.json"
    path, adapter = tmp_path / "run.yaml", str(tmp_path / "adapter")
    path.write_text(yaml.safe_dump(CONTENT | {"model": adapter}))
    for named in ({"base_model_name_or_path": "/gone/llama"}, {}):
        settings.write_text(json.dumps(named))
        model = load_run_file(path, ["model.base=other"]).model
        assert (model.base, model.adapter) == ("other", adapter)
    settings.write_text(json.dumps({"base_model_name_or_path": "owner/llama"}))
    model = load_run_file(path, ["model.adapter=another"]).model
    assert (model.base, model.adapter) == ("owner/llama", "another")
    assert load_run_file(path, ["model=other"]).model.adapter is None
    path.write_text(yaml.safe_dump(CONTENT))
    model = load_run_file(path, ["model.adapter=another"]).model
    assert (model.base, model.adapter) == ("base", "another")
