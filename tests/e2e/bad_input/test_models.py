"""Models and tokenizers that are not there, incomplete, or of a kind that cannot be pruned."""

import pytest
from refusals import Case, assert_refused, set_to
from transformers import GPT2Config


def no_weights(case):
    (case.model() / "model.safetensors").unlink()


def no_config(case):
    (case.model() / "config.json").unlink()


def no_tokenizer(case):
    for file in case.model().glob("tokenizer*"):
        file.unlink()


def gpt2(case):
    GPT2Config().save_pretrained(case.model())


def uneven_model(case):
    case.model(pruned={"layers": []})


def other_vocabulary(case):
    case.model(vocab_size=20)


CASES = {
    "too long for the model": (set_to("tune.max_length", 4096), ["tune.max_length=4096", "context of 128"]),
    "no model folder": (set_to("model", "./nowhere"), ["no folder ./nowhere", "hub id"]),
    "no adapter": (set_to("model", {"base": "", "adapter": "./nowhere"}), ["no folder ./nowhere"]),
    "model without weights": (no_weights, ["holds no weights", "*.safetensors"]),
    "model without config": (no_config, ["no config.json"]),
    "model without tokenizer": (no_tokenizer, ["tokenizer"]),
    "unsupported family": (gpt2, ["`gpt2`", "llama", "qwen3"]),
    "uneven model": (uneven_model, ["pruned", "dense model", "`tuneprune recover`"]),
    "tokenizer of another model": (other_vocabulary, ["tokenizer", "20 embeddings"]),
}


@pytest.mark.parametrize("name", CASES)
def test_models(name, refuses_run):
    refuses_run(*CASES[name])


def test_incomplete_weights(tmp_path, model_folder, tuneprune, capsys):
    from safetensors.torch import load_file, save_file

    case = Case(tmp_path, model_folder)
    weights = case.model() / "model.safetensors"
    tensors = load_file(weights)
    tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, weights, metadata={"format": "pt"})
    run_file = case.run_file()
    fragments = ["incomplete", "model.layers.1.mlp.up_proj.weight"]
    assert_refused(capsys, tuneprune("run", run_file, "--out", tmp_path / "out"), fragments)
    assert not (tmp_path / "out").exists()

    weights.write_bytes(b"\x00" * 100)
    assert_refused(capsys, tuneprune("run", run_file, "--out", tmp_path / "out"), ["cannot load"])
    assert not (tmp_path / "out").exists()
