"""Untrusted model folders and adapters: their code runs only if the user allows it, and no pickle is read."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from e2e.refusals import assert_refused
from e2e.untrusted import change, hostile_model, pickled
from helpers import tiny_runs
from helpers.tiny import random_masks
from transformers import AutoConfig

from tuneprune import export, families
from tuneprune.compress import compress
from tuneprune.export.probes import fresh_process, run_reload
from tuneprune.export.targets.quantised import target as quantised
from tuneprune.model.loading import load_model
from tuneprune.structure import spaces
from tuneprune.structure.plan import Plan

OWN_CLASS = "modeling_pruned.PrunedLlamaForCausalLM"
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`"),  # peft's
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),  # a limit reached inside of gc
]


@pytest.fixture
def mark(tmp_path):
    return tmp_path / "mark"


@pytest.fixture
def hostile(tmp_path, model_folder, mark):
    return hostile_model(tmp_path / "hostile", model_folder, mark)


@pytest.fixture
def hostile_ragged(tmp_path, model_folder, mark):
    """A ragged folder that tuneprune wrote, with changed code."""
    model = load_model(str(model_folder), None, torch.device("cpu"))
    architecture = families.describe(model)
    space = spaces.build("width", architecture, model)
    masks = random_masks(space)
    small = compress(model, architecture, space, Plan.from_masks(masks, space))
    export.write(small, tiny_runs.letter_tokenizer(), tmp_path / "own")
    folder = hostile_model(tmp_path / "ragged", tmp_path / "own", mark)
    assert "pruned" in json.loads((folder / "config.json").read_text())
    change(folder / "config.json", auto_map={"AutoModelForCausalLM": OWN_CLASS})
    return folder


@pytest.fixture
def no_waiting(monkeypatch):
    """Let proofs reload in this process, as fresh interpreters take seconds."""

    def reload_here(_, arguments, __):
        run_reload.main(*arguments)
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(fresh_process, "run_child", reload_here)
    monkeypatch.setattr(run_reload, "Blocker", type("Open", (), {"find_spec": lambda *_: None}))


def test_no_command_runs_code_of_a_model_folder(hostile, mark, tmp_path, tuneprune, no_waiting):
    suites = ["--suite", "clinic", "--limit", 1]
    run_file = tiny_runs.write_run(tmp_path, hostile, method={"name": "magnitude"}, tune={"steps": 1}, reference=False)
    assert tuneprune("inspect", hostile) == 0
    assert tuneprune("validate", run_file) == 0
    assert tuneprune("run", run_file, "--out", tmp_path / "out") == 0
    assert tuneprune("compress", hostile, "--plan", tmp_path / "out/plan", "--out", tmp_path / "small") == 0
    assert tuneprune("evaluate", hostile, *suites) == 0
    assert tuneprune("recover", hostile, run_file, "--out", tmp_path / "recovered") == 0
    assert not mark.exists()
    for folder in ("out/model", "small", "recovered/model"):  # nor do the results refer to it
        written = tmp_path / folder
        config = json.loads((written / "config.json").read_text())
        assert set(config.get("auto_map", {}).values()) <= {"modeling_pruned.PrunedLlamaModel", OWN_CLASS}
        assert "auto_map" not in json.loads((written / "tokenizer_config.json").read_text())
        assert not list(written.glob("*evil*"))


def test_a_changed_modelling_file_of_a_ragged_folder_does_not_run(
    hostile_ragged, mark, tmp_path, tuneprune, no_waiting
):
    run_file = tiny_runs.write_run(tmp_path, hostile_ragged, tune={"steps": 1})
    assert tuneprune("recover", hostile_ragged, run_file, "--out", tmp_path / "recovered") == 0
    assert "write_text" not in (tmp_path / "recovered" / "model" / "modeling_pruned.py").read_text()
    export.take_reference(hostile_ragged)  # the first step of every other export
    assert tuneprune("evaluate", hostile_ragged, "--suite", "clinic", "--limit", 1) == 2
    assert not mark.exists()


def test_quantising_names_its_own_code_and_no_other(hostile_ragged, tmp_path, monkeypatch):
    """The process trusts the folder that it is given, so the folder must not refer to any other code."""
    staged = {}

    def look(_, stage, arguments):
        staged.update(
            {file.name: file.read_bytes() for file in Path(stage).iterdir() if file.suffix in (".py", ".json")}
        )
        shutil.copytree(stage, arguments[0])
        change(Path(arguments[0]) / "config.json", quantization_config={})

    monkeypatch.setattr(quantised, "run_fresh", look)
    change(hostile_ragged / "config.json", auto_map={"AutoModelForCausalLM": f"{hostile_ragged}/modeling_evil.Evil"})
    shape = export.Shape.of(AutoConfig.from_pretrained(hostile_ragged))
    quantised.Bnb().write(hostile_ragged, tmp_path / "quantised", shape)
    assert [name for name in staged if name.endswith(".py")] == ["modeling_pruned.py"]
    assert b"write_text" not in staged["modeling_pruned.py"]
    for text in (staged["config.json"], (tmp_path / "quantised" / "config.json").read_bytes()):
        assert json.loads(text)["auto_map"]["AutoModelForCausalLM"] == OWN_CLASS


def test_code_runs_where_the_user_says_so(tmp_path, model_folder, mark, tuneprune, monkeypatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    hostile = hostile_model(tmp_path / "hostile", model_folder, mark, architectures=["Evil"])
    arguments = ["evaluate", hostile, "--suite", "clinic", "--limit", 1]
    assert tuneprune(*arguments) == 2
    assert not mark.exists()
    assert tuneprune(*arguments, "--trust-remote-code") == 0
    assert mark.exists()


def only_pickles(folder, mark):
    (folder / "model.safetensors").unlink()
    pickled(folder / "pytorch_model.bin", mark)


def index_to(name):
    def write(folder, mark):
        (folder / "model.safetensors").rename(folder / "other.safetensors")
        pickled(folder / "evil.bin", mark)
        index = {"metadata": {}, "weight_map": {"lm_head.weight": name}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return write


def adapter_beside(folder, mark):
    change(folder / "adapter_config.json", peft_type="LORA", base_model_name_or_path="elsewhere/base")
    pickled(folder / "adapter_model.bin", mark)


def said(**entries):
    return lambda folder, mark: change(folder / "config.json", **entries)


def fifo(folder, mark):
    import os

    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")


FOLDERS = {
    "pickles": (only_pickles, ["pickles (pytorch_model.bin)", "*.safetensors", "save_pretrained()"]),
    "index to a pickle": (index_to("evil.bin"), ["points to 'evil.bin'", "*.safetensors"]),
    "index out of the folder": (index_to("../other.safetensors"), ["points to '../other.safetensors'"]),
    "index to a number": (index_to(3), ["points to 3"]),
    "adapter beside it": (adapter_beside, ["adapter_config.json", "model.adapter"]),
    "a pipe for weights": (fifo, ["not a regular file"]),
    "a billion layers": (said(num_hidden_layers=10**9), ["num_hidden_layers=1e+09", "1 to 21"]),
    "more layers than weights": (said(num_hidden_layers=20), ["weight files", "parameters"]),
    "wider than its weights": (said(intermediate_size=2**20), ["weight files", "parameters"]),
    "wider than anything": (said(hidden_size=2**40), ["hidden_size=1.1e+12"]),
    "less than nothing": (said(vocab_size=-1), ["vocab_size=-1"]),
    "no number": (said(hidden_size="x"), ["cannot read config.json"]),
    "other code only": (said(model_type="evil", auto_map={"AutoConfig": "modeling_evil.EvilConfig"}), ["`evil`"]),
}


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize("command", ["inspect", "evaluate"])
def test_a_disguised_folder_is_refused(command, name, tmp_path, model_folder, mark, tuneprune, capsys):
    make, fragments = FOLDERS[name]
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    make(folder, mark)
    options = ["--suite", "clinic", "--limit", 1] if command == "evaluate" else []
    fragments = fragments if name != "other code only" or command == "inspect" else ["cannot read config.json"]
    assert_refused(capsys, tuneprune(command, folder, *options), fragments)
    assert not mark.exists()


@pytest.mark.parametrize("kept", [False, True])
def test_adapters_that_are_pickles_are_refused(kept, tmp_path, model_folder, mark, tuneprune, capsys):
    """Even if there is another safetensors file next to the pickle that peft would read."""
    adapter = tmp_path / "adapter"
    tiny_runs.make_adapter(adapter)
    (adapter / "adapter_model.safetensors").rename(adapter / "other.safetensors")
    pickled(adapter / "adapter_model.bin", mark)
    if not kept:
        (adapter / "other.safetensors").unlink()
    run_file = tiny_runs.write_run(tmp_path, model_folder)
    content = yaml.safe_load(run_file.read_text()) | {"model": {"base": str(model_folder), "adapter": str(adapter)}}
    run_file.write_text(yaml.safe_dump(content))
    fragments = ["adapter_model.safetensors", "run code"] if kept else ["pickles", "run code"]
    assert_refused(capsys, tuneprune("validate", run_file), fragments)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("settings", "fragment"),
    [
        ({"r": 10**12}, "rank 1000000000000"),
        ({"rank_pattern": {"q_proj": 10**9}}, "rank 1000000000"),
        ({"r": "x"}, "model.adapter"),
        ({"target_modules": "(((a|[a-z._0-9])+)+)+!"}, "take minutes to match"),
        ({"task_type": None, "auto_mapping": {"base_model_class": "system", "parent_library": "os"}}, "base"),
    ],
)
def test_settings_of_adapters_cost_neither_time_nor_memory(
    settings, fragment, tmp_path, model_folder, tuneprune, capsys, monkeypatch
):
    monkeypatch.setattr("tuneprune.model.adapters.PATIENCE_S", 0.5)
    tiny_runs.make_adapter(tmp_path / "adapter")
    change(tmp_path / "adapter" / "adapter_config.json", **settings)
    run_file = tiny_runs.write_run(tmp_path, model_folder)
    content = yaml.safe_load(run_file.read_text()) | {
        "model": {"base": str(model_folder), "adapter": str(tmp_path / "adapter")}
    }
    run_file.write_text(yaml.safe_dump(content))
    status = tuneprune("validate", run_file)
    if "auto_mapping" in settings:  # which would name a library to import
        assert status == 0
    else:
        assert_refused(capsys, status, [fragment])
