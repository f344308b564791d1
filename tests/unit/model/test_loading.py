import json
import math

import pytest
import torch
from helpers.tiny import logits, tiny_model
from helpers.tiny_runs import make_adapter, save_model, sentences
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from tuneprune import export
from tuneprune.errors import ConfigError, wrap_errors
from tuneprune.model.loading import cast_weights, load_config, load_model, load_tokenizer, skeleton
from tuneprune.pipeline.recover import load_smaller
from tuneprune.system.progress import remark

CPU = torch.device("cpu")
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"


def entries(name, **changes):
    """Other entries in a JSON file of the folder."""

    def change(folder):
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def renamed(prefix):
    def change(folder):
        tensors = load_file(folder / "model.safetensors")
        save_file({f"{prefix}{k}": t for k, t in tensors.items()}, folder / "model.safetensors", {"format": "pt"})

    return change


def sharded(without=""):
    def change(folder):
        model = LlamaForCausalLM.from_pretrained(folder)
        (folder / "model.safetensors").unlink()
        model.save_pretrained(folder, max_shard_size="20KB")
        for path in folder.glob(without) if without else ():
            path.unlink()

    return change


CONFIG, GENERATION = "config.json", "generation_config.json"
REFUSED = {
    "generation that contradicts itself": (entries(GENERATION, num_return_sequences=4), f"Correct {GENERATION}, or"),
    "generation that is no JSON": (lambda f: (f / GENERATION).write_text("{"), f"Correct {GENERATION}, or remove it"),
    "unknown rope": (entries(CONFIG, rope_scaling={"type": "foo", "factor": 2.0}), "'foo' is not known. Correct it"),
    "fewer tokens": (entries(CONFIG, vocab_size=60), "`lm_head.weight` is 64 x 32 in the files of .*, but 60 x 32"),
    "compiled": (renamed("_orig_mod."), r"torch.compile \(its _orig_mod\)"),
    "wrapped": (renamed("module."), r"DataParallel \(its module\)"),
    "not merged": (renamed("base_model.model."), r"PEFT \(merge_and_unload\(\)\)"),
    "another format": (
        lambda f: (f / "model.safetensors").rename(f / "consolidated.safetensors"),
        "consolidated.safetensors, but neither model.safetensors nor",
    ),
    "no index": (sharded("*.index.json"), "neither model.safetensors nor model.safetensors.index.json"),
    "no shard": (sharded("model-00002*"), "lacks 1 of its 5 weight files, such as model-00002-of-00005.safetensors"),
    "pointer": (lambda f: (f / "model.safetensors").write_text(POINTER), "Git LFS pointer.*git lfs pull"),
    "pointer of the tokenizer": (lambda f: (f / "tokenizer.json").write_text(POINTER), "tokenizer.json is a Git LFS"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_folder_that_cannot_work_is_refused_with_the_reason(tmp_path, name):
    change, said = REFUSED[name]
    change(save_model(tmp_path))
    with pytest.raises(ConfigError, match=said) as caught:
        load_config(str(tmp_path))
    assert "Download it again" not in str(caught.value)


ACCEPTED = {
    "sampling settings without sampling": entries(GENERATION, do_sample=False, temperature=0.6, top_p=0.9),
    "generation in the config": entries(CONFIG, do_sample=True, temperature=0.6, num_beams=2),
    "rope of older versions": entries(CONFIG, rope_theta=5000.0, rope_scaling={"type": "linear", "factor": 2.0}),
    "code beside": entries(CONFIG, auto_map={"AutoModelForCausalLM": "modeling_x.X"}),
    "attention weights": entries(CONFIG, output_attentions=True),
    "tuples": entries(CONFIG, return_dict=False),
    "names without prefix": lambda folder: save_file(
        {k.removeprefix("model."): t for k, t in load_file(folder / "model.safetensors").items()},
        folder / "model.safetensors",
        {"format": "pt"},
    ),
    "tensors of other heads": lambda folder: save_file(
        load_file(folder / "model.safetensors") | {"v_head.weight": torch.ones(1, 32)},
        folder / "model.safetensors",
        {"format": "pt"},
    ),
    "another format beside": lambda f: save_file(
        {"tok_embeddings.weight": torch.ones(2)}, f / "consolidated.safetensors"
    ),
    "shards": sharded(),
}


@pytest.mark.filterwarnings("ignore:.*generation flags")
@pytest.mark.parametrize("name", ACCEPTED)
def test_an_unusual_folder_loads_and_saves(tmp_path, name):
    expected = logits(LlamaForCausalLM.from_pretrained(save_model(tmp_path / "model")))
    ACCEPTED[name](tmp_path / "model")
    model = load_model(str(tmp_path / "model"), None, CPU)
    if "rope" not in name:
        assert torch.equal(logits(model), expected)
    tokenizer = load_tokenizer(str(tmp_path / "model"), model.config)
    export.write(model, tokenizer, tmp_path / "out")
    assert torch.equal(logits(LlamaForCausalLM.from_pretrained(tmp_path / "out")), logits(model))


class GatedRepoError(OSError):
    """Named as in the hub's library."""


def missing_package():
    raise ModuleNotFoundError("No module named 'protobuf'", name="protobuf")


def wrapped(cause, message="cannot"):
    raise OSError(message) from cause


REMEDIES = {
    "package": (missing_package, "pip install protobuf"),
    "package by its own advice": (
        lambda: wrapped(ImportError("Install it with `pip install tiktoken`.")),
        "pip install tiktoken",
    ),
    "gated": (lambda: wrapped(GatedRepoError("403")), "Ask for access on its page"),
    "no connection": (lambda: wrapped(ConnectionError("down")), "HF_HUB_OFFLINE"),
    "permission": (lambda: (_ for _ in ()).throw(PermissionError(13, "Permission denied")), "readable for this user"),
    "memory": (lambda: (_ for _ in ()).throw(RuntimeError("CUDA out of memory.")), "Free memory"),
    "a file": (lambda: (_ for _ in ()).throw(ValueError("damaged")), "Download it again"),
}


@pytest.mark.parametrize("name", REMEDIES)
def test_the_advice_is_about_the_cause(name):
    fails, remedy = REMEDIES[name]
    with pytest.raises(ConfigError) as caught, wrap_errors("model: cannot load x"):
        fails()
    assert remedy in str(caught.value)
    assert ("Download it again" in str(caught.value)) == (name == "a file")


def test_the_advice_for_a_missing_id_is_about_the_hub():
    with pytest.raises(ConfigError, match="Check the connection to the hub"):
        load_config("nobody/has-this")


def test_a_sentencepiece_file_alone_is_a_tokenizer(tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    save_model(tmp_path)
    for path in tmp_path.glob("tokenizer*"):
        path.unlink()
    (tmp_path / "texts").write_text("\n".join(sentences(1, 200)))
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "texts"), model_prefix=str(tmp_path / "tokenizer"), vocab_size=30, minloglevel=2
    )
    (tmp_path / "tokenizer.vocab").unlink()
    tokenizer = load_tokenizer(str(tmp_path), load_config(str(tmp_path)))
    text = sentences(2, 1)[0]
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]).strip() == text


def poison(path, name, number):
    """Set one number of the first tensor with this prefix in a safetensors file."""
    tensors = load_file(path)
    next(tensor for key, tensor in tensors.items() if key.startswith(name)).view(-1)[0] = number
    save_file(tensors, path, {"format": "pt"})


def test_casting_to_the_stored_precision_and_back_changes_nothing():
    model = tiny_model("llama3", dtype=torch.float32)
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()
    before = logits(model)
    assert {parameter.dtype for parameter in cast_weights(model, torch.bfloat16).parameters()} == {torch.bfloat16}
    assert torch.equal(logits(cast_weights(model, torch.float32)), before)  # RoPE's frequencies were not rounded
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize(
    "load", [lambda folder: load_model(str(folder), None, CPU), lambda f: load_smaller(str(f), CPU)]
)
@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_model_with_weights_that_are_not_finite_is_refused_by_the_name_of_one(tmp_path, load, number):
    poison(save_model(tmp_path) / "model.safetensors", "model.layers.1.mlp.up_proj.weight", number)
    with pytest.raises(ConfigError, match=r"`model.layers.1.mlp.up_proj.weight` of .* holds NaN or infinite"):
        load(str(tmp_path))


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_an_adapter_whose_weights_are_not_finite_is_refused(tmp_path):
    model, adapter = save_model(tmp_path / "model"), tmp_path / "adapter"
    make_adapter(adapter)
    poison(adapter / "adapter_model.safetensors", "", math.nan)
    with pytest.raises(ConfigError, match="holds NaN or infinite"):
        load_model(str(model), str(adapter), CPU)


@pytest.mark.parametrize("file", [CONFIG, GENERATION])
def test_the_cache_that_gradient_checkpointing_turned_off_is_turned_on(tmp_path, caplog, file):
    remark.cache_clear()
    entries(file, use_cache=False)(save_model(tmp_path))
    config = load_config(str(tmp_path))
    for model in (load_model(str(tmp_path), None, CPU), skeleton(config, generation=str(tmp_path))):
        assert model.config.use_cache
        assert model.generation_config.use_cache in (True, None)
    assert "use_cache" in caplog.text
