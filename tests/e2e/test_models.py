"""Model folders with common flaws: they are corrected with a warning, and the result is valid."""

import json

import pytest
import torch
from e2e.refusals import assert_refused
from helpers import tiny_runs
from helpers.tiny import logits
from transformers import AutoModelForCausalLM, AutoTokenizer

from tuneprune.system.progress import remark

TYPES = {"dtype": None, "torch_dtype": None}


@pytest.fixture(autouse=True)
def _said_again():
    remark.cache_clear()


def configure(folder, **changes):
    path = folder / "config.json"
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))
    return folder


def remarks(capsys):
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("! ")]


@pytest.mark.parametrize("method", ["magnitude", "atp"])
def test_a_config_that_says_tied_over_two_tensors(tmp_path, tuneprune, capsys, method):
    base, out = tiny_runs.save_model(tmp_path / "base"), tmp_path / "out"
    expected = AutoModelForCausalLM.from_pretrained(base)
    total = sum(parameter.numel() for parameter in expected.parameters())
    configure(base, tie_word_embeddings=True)
    options = {"name": method} if method != "atp" else dict(tiny_runs.METHOD)
    run_file = tiny_runs.write_run(tmp_path, base, method=options, tune={"steps": 2}, reference=False)
    assert tuneprune("run", run_file, "--out", out) == 0
    assert len([line for line in remarks(capsys) if "two different tensors" in line]) == 1
    proof = json.loads((out / "proof.json").read_text())
    assert proof["parameters"]["dense_total"] == total
    assert proof["logits"]["max_rel_diff"] < 1e-5
    small = AutoModelForCausalLM.from_pretrained(out / "model", trust_remote_code=True)
    assert small.lm_head.weight is not small.model.embed_tokens.weight
    assert not (small.lm_head.weight == small.model.embed_tokens.weight).all()


def padded_beyond(tmp_path):
    """A padding token was added to the tokenizer, and the embeddings were not resized."""
    base = tiny_runs.save_model(tmp_path / "base", vocab_size=30)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(base)
    generation = json.loads((base / "generation_config.json").read_text())
    (base / "generation_config.json").write_text(json.dumps(generation | {"pad_token_id": 30}))
    return configure(base, pad_token_id=30)


@pytest.mark.parametrize("method", ["magnitude", "atp"])
def test_a_padding_token_beyond_the_embeddings(tmp_path, tuneprune, capsys, method):
    base, out = padded_beyond(tmp_path), tmp_path / "out"
    options = {"name": method} if method != "atp" else dict(tiny_runs.METHOD)
    run_file = tiny_runs.write_run(tmp_path, base, method=options, tune={"steps": 2}, reference=False)
    assert tuneprune("validate", run_file) == 0
    remark.cache_clear()
    assert tuneprune("run", run_file, "--out", out) == 0
    assert any("padding token [PAD] is number 30" in line and "</s>" in line for line in remarks(capsys))
    model = AutoModelForCausalLM.from_pretrained(out / "model", trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(out / "model")
    rows = tokenizer(["to be", "to be or not"], return_tensors="pt", padding=True, padding_side="left")
    assert rows["input_ids"].max() < 30
    model.generate(**rows, max_new_tokens=4)
    assert tuneprune("recover", out / "model", run_file, "--out", tmp_path / "recovered") == 0
    assert tuneprune("export", out / "model", "--to", "gguf", "--out", tmp_path / "exports") in (0, 2)


@pytest.mark.parametrize("command", ["run", "validate", "recover", "plan"])
def test_a_token_of_a_test_item_that_has_no_embedding(tmp_path, tuneprune, capsys, command):
    base, out = tiny_runs.save_model(tmp_path / "base", vocab_size=30), tmp_path / "out"
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["zz"])
    tokenizer.save_pretrained(base)
    run_file = tiny_runs.write_run(tmp_path, base, method={"name": "magnitude"})
    tiny_runs.write_texts(tmp_path / "test.jsonl", [*tiny_runs.sentences(3, 6), "to zz or not"])
    arguments = {"recover": [base, run_file]}.get(command, [run_file])
    arguments += ["--out", out] if command != "validate" else []
    said = ["a test item", "token 30 (`zz`)", "30 embeddings"]
    assert_refused(capsys, tuneprune(command, *arguments), said)
    assert not out.exists()


def test_flash_attention_and_no_precision_in_the_config(tmp_path, tuneprune, capsys):
    base, out = tiny_runs.save_model(tmp_path / "base"), tmp_path / "out"
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.float16).save_pretrained(base)
    configure(base, **TYPES, attn_implementation="flash_attention_2")
    run_file = tiny_runs.write_run(tmp_path, base, method={"name": "magnitude"}, tune={"steps": 2}, reference=False)
    assert tuneprune("run", run_file, "--out", out) == 0
    assert any("flash_attention_2" in line for line in remarks(capsys))
    written = json.loads((out / "model" / "config.json").read_text())
    assert written["dtype"] == "float16"
    assert "attn_implementation" not in written
    assert tuneprune("inspect", base) == 0
    assert "float16" in capsys.readouterr().out


def test_paths_with_home_and_variables(tmp_path, tuneprune, capsys, monkeypatch):
    base = tiny_runs.save_model(tmp_path / "base")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MODELS", str(tmp_path))
    run_file = tiny_runs.write_run(tmp_path, "~/base", method={"name": "magnitude"})
    assert tuneprune("plan", run_file, "--out=~/planned") == 0
    assert (tmp_path / "planned" / "plan").is_dir()
    assert tuneprune("validate", run_file, "--set", "model=$MODELS/base") == 0
    assert tuneprune("inspect", "$MODELS/base") == 0
    compressed = ("--plan=~/planned/plan", "--out=$MODELS/small")
    assert tuneprune("compress", "~/base", *compressed) == 0
    assert (tmp_path / "small" / "config.json").exists()
    assert tuneprune("recover", "~/base", run_file, "--out=~/recovered", "--set", "tune.steps=1") == 0
    assert (tmp_path / "recovered" / "record.json").exists()
    capsys.readouterr()
    assert_refused(capsys, tuneprune("inspect", "$NOT_SET/base"), ["$NOT_SET", "is not set"])
    assert logits(AutoModelForCausalLM.from_pretrained(base)).isfinite().all()


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")  # peft uses the old name
def test_the_folder_of_an_adapter_in_a_run_file(tmp_path, tuneprune, capsys):
    base, adapter, out = tiny_runs.save_model(tmp_path / "base"), tmp_path / "adapter", tmp_path / "out"
    tiny_runs.make_adapter(adapter)
    settings = json.loads((adapter / "adapter_config.json").read_text()) | {"base_model_name_or_path": str(base)}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    tokenizer.save_pretrained(adapter)
    run_file = tiny_runs.write_run(tmp_path, adapter, method={"name": "magnitude"}, tune={"steps": 2}, reference=False)
    assert tuneprune("run", run_file, "--out", out) == 0
    assert any("of the adapter are used" in line for line in remarks(capsys))
    assert json.loads((out / "record.json").read_text())["model"]["adapter"] == str(adapter)
    assert AutoTokenizer.from_pretrained(out / "model").chat_template == tokenizer.chat_template
    assert tuneprune("evaluate", adapter, "--suite", "clinic") == 2
    assert f"`{base} --adapter {adapter}` for compress" in capsys.readouterr().err.replace("\n", "")
