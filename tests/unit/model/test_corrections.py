"""Configs that contradict the weight files: the files are used, and the correction is reported."""

import json
import logging

import pytest
import torch
from helpers import tiny, tiny_runs
from helpers.tiny import logits, tiny_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tuneprune import families
from tuneprune.compress import compress
from tuneprune.errors import ConfigError
from tuneprune.model.loading import load_any_config, load_config, load_model, skeleton, stored_dtype
from tuneprune.pipeline.stages import compress_model, export_model
from tuneprune.structure import spaces
from tuneprune.structure.plan import Plan
from tuneprune.system.progress import Progress, remark

CPU = torch.device("cpu")


def configure(folder, **changes):
    """The folder with other entries in its config.json; None removes one."""
    path = folder / "config.json"
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))
    return folder


def rewrite(folder, change):
    """The folder with other tensors in its weights."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})
    return folder


def keep_all(folder, out):
    """The model of a plan that removes nothing: pruned in memory, and written by `tuneprune compress` to `out`."""
    model = load_model(str(folder), None, CPU)
    architecture = families.describe(model)
    name = "experts" if model.config.model_type in ("mixtral", "qwen3_moe") else "width"
    space = spaces.build(name, architecture, model)
    plan = Plan.from_masks(space.ones(), space, {"space": name})
    plan.save(out / "plan")
    compress_model(str(folder), out / "plan", out / "small")
    return compress(model, architecture, space, plan)


@pytest.mark.parametrize("variant", tiny.VARIANTS)
def test_weights_that_are_not_tied_stay_two_tensors_whatever_the_config_says(tmp_path, caplog, variant):
    folder = tiny_runs.save_model(tmp_path / "model", variant, tie_word_embeddings=False)
    expected = logits(AutoModelForCausalLM.from_pretrained(folder))
    configure(folder, tie_word_embeddings=True)
    config = load_config(str(folder))
    assert not config.tie_word_embeddings
    assert "two different tensors" in caplog.text
    model = load_model(str(folder), None, CPU)
    assert families.describe(model) == families.describe_config(config)
    assert torch.equal(logits(model), expected)
    small = keep_all(folder, tmp_path)
    assert torch.equal(logits(small), expected)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "small")), expected)
    assert not json.loads((tmp_path / "small" / "config.json").read_text())["tie_word_embeddings"]


def test_other_formats_are_not_exported_from_a_wrong_config(tmp_path):
    folder = configure(tiny_runs.save_model(tmp_path / "model"), tie_word_embeddings=True)
    with pytest.raises(ConfigError, match=r"set tie_word_embeddings to false in its config\.json"):
        export_model(folder, ["gguf"], tmp_path / "out", Progress())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("variant", ["llama3", "gemma2"])
def test_tied_weights_stored_twice_are_tied(tmp_path, caplog, variant):
    folder = tiny_runs.save_model(tmp_path / "model", variant)
    rewrite(folder, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}))
    assert load_config(str(folder)).tie_word_embeddings
    assert not caplog.text
    model = load_model(str(folder), None, CPU)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    small = keep_all(folder, tmp_path)
    assert torch.equal(logits(small), logits(AutoModelForCausalLM.from_pretrained(folder)))


@pytest.mark.parametrize("missing", ["lm_head.weight", "model.embed_tokens.weight"])
def test_one_of_two_tensors_is_not_called_an_incomplete_download(tmp_path, missing):
    folder = rewrite(tiny_runs.save_model(tmp_path), lambda tensors: tensors.pop(missing))
    with pytest.raises(ConfigError) as caught:
        load_config(str(folder))
    assert "tie_word_embeddings" in str(caught.value)
    assert missing in str(caught.value)
    assert "ownload" not in str(caught.value)
    assert load_config(str(configure(folder, tie_word_embeddings=True))).tie_word_embeddings
    assert torch.isfinite(logits(load_model(str(folder), None, CPU))).all()


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("said", [None, "float32", "bfloat16"])
def test_the_precision_of_the_files_is_used(tmp_path, caplog, stored, said):
    tiny_model("llama", dtype=stored).save_pretrained(tmp_path)
    configure(tmp_path, dtype=said, torch_dtype=None)
    assert stored_dtype(load_config(str(tmp_path))) == stored
    name = str(stored).removeprefix("torch.")
    assert (f"stored in {name}" in caplog.text) == (said in ("float32", "bfloat16") and said != name)


def test_an_invalid_precision_can_be_removed(tmp_path):
    folder = configure(tiny_runs.save_model(tmp_path), dtype="auto")
    with pytest.raises(ConfigError, match=r"dtype='auto'.* Remove the entry"):
        load_config(str(folder))


def test_the_precision_of_most_parameters_is_used(tmp_path, caplog):
    tiny_model("llama", dtype=torch.bfloat16).save_pretrained(tmp_path)

    def widen(tensors):
        tensors |= {name: tensor.float() for name, tensor in tensors.items() if "norm" in name}
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(2**20)  # from an old version, and ignored

    config = load_config(str(rewrite(tmp_path, widen)))
    assert stored_dtype(config) == torch.bfloat16
    assert "float32" in caplog.text


@pytest.mark.parametrize(
    "entries",
    [
        {"_attn_implementation": "flash_attention_2"},
        {"attn_implementation": "flash_attention_3"},
        {"_attn_implementation": "kernels-community/vllm-flash-attn3"},
        {"_attn_implementation": "nonsense"},
        {"attn_implementation": {"": "flash_attention_2"}},
        {"_attn_implementation_internal": "flash_attention_2"},
    ],
)
def test_an_unavailable_attention_is_replaced(tmp_path, caplog, entries):
    folder = tiny_runs.save_model(tmp_path / "model")
    expected = logits(load_model(str(folder), None, CPU))
    configure(folder, **entries)
    skeleton(load_any_config(str(folder)))
    assert torch.equal(logits(load_model(str(folder), None, CPU)), expected)
    small = keep_all(folder, tmp_path)
    assert small.config._attn_implementation in ("sdpa", "eager")
    assert "attn" not in (tmp_path / "small" / "config.json").read_text().replace("self_attn", "")
    assert "_attn_implementation_internal" in entries or "which is not used here" in caplog.text


@pytest.mark.parametrize("name", ["eager", "sdpa"])
def test_an_available_attention_is_used(tmp_path, caplog, name):
    folder = configure(tiny_runs.save_model(tmp_path), _attn_implementation=name)
    assert load_model(str(folder), None, CPU).config._attn_implementation == name
    assert not caplog.text


def test_a_padding_token_beyond_the_embeddings_is_left_out_of_the_config(tmp_path, caplog):
    folder = configure(tiny_runs.save_model(tmp_path), pad_token_id=64)
    assert load_config(str(folder)).pad_token_id is None
    assert "pad_token_id=64" in caplog.text
    load_model(str(folder), None, CPU)


@pytest.fixture(autouse=True)
def _heard_again(caplog):
    remark.cache_clear()
    caplog.set_level(logging.WARNING, "tuneprune")
