"""A GGUF file as a model: the same weights, config and tokens as the folder that it was made from."""

import json

import pytest
import torch
from helpers.gguf_files import rewrite, tiny, write_gguf
from helpers.tiny import LLAMA3_ROPE, logits
from helpers.toy_tokenizer import byte_tokenizer, piece_tokenizer
from huggingface_hub import constants
from tokenizers import Regex, pre_tokenizers
from transformers import AutoTokenizer

from tuneprune.errors import TunePruneError
from tuneprune.export.targets.gguf.vocabulary import SPLITS
from tuneprune.model import gguf_files
from tuneprune.model.gguf_files import convert_gguf, plain_folder
from tuneprune.model.loading import load_config, load_model, load_tokenizer
from tuneprune.pipeline.output_folder import contents
from tuneprune.system.progress import remark

CPU = torch.device("cpu")
TEXTS = ("The anaesthetist gave 150 mg,\n\tthen  2 more.", "<s>naïve 漢字</s> 'tis 2024")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "cache"))
    remark.cache_clear()
    return tmp_path / "cache" / "tuneprune"


@pytest.fixture
def file(tmp_path):
    return tmp_path / "tiny.gguf"


def settings(model):
    """What a config says, apart from where it comes from and what only describes how it was trained."""
    content = load_config(str(model)).to_dict()
    return {key: value for key, value in content.items() if key not in ("_name_or_path", "transformers_version")}


def assert_same(file, folder):
    loaded, expected = load_model(str(file), None, CPU), load_model(str(folder), None, CPU)
    assert torch.equal(logits(loaded), logits(expected))
    assert loaded.generation_config.eos_token_id == expected.generation_config.eos_token_id


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16"])
def test_a_llama_computes_the_same(file, kind):
    folder = write_gguf(file, tiny("llama", kind), kind)
    assert_same(file, folder)
    assert settings(file) == settings(folder)
    assert load_config(str(file)).dtype == tiny("llama", kind).dtype


@pytest.mark.parametrize("variant", ["qwen2", "qwen3", "phi3", "starcoder2"])
def test_other_families_compute_the_same(file, variant):
    changes = {"sliding_window": None} if variant == "starcoder2" else {}
    folder = write_gguf(file, tiny(variant, **changes))
    assert_same(file, folder)


@pytest.mark.parametrize("tied", [True, False])
def test_the_rope_of_llama_3_is_recognised(file, tied):
    rope = LLAMA3_ROPE | {"original_max_position_embeddings": 8192, "rope_theta": 500000.0, "factor": 32.0}
    folder = write_gguf(file, tiny("llama3", rope_parameters=rope, head_dim=32, tie_word_embeddings=tied))
    assert_same(file, folder)
    assert settings(file)["rope_parameters"] == rope
    assert load_config(str(file)).tie_word_embeddings == tied


def test_an_odd_epsilon_is_the_short_decimal(file):
    write_gguf(file, tiny("llama", rms_norm_eps=1e-5))
    assert load_config(str(file)).rms_norm_eps == 1e-5


@pytest.mark.parametrize("kind", ["smollm", "gpt-2", "llama-bpe", "qwen2", "sentencepiece"])
def test_texts_become_the_same_tokens(file, kind):
    tokenizer = piece_tokenizer() if kind == "sentencepiece" else byte_tokenizer()
    backend = tokenizer.backend_tokenizer
    if kind == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    elif kind not in ("gpt-2", "sentencepiece"):
        expression = next(expression for expression, names in SPLITS.items() if kind in names)
        split = pre_tokenizers.Split(Regex(expression), "isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
        backend.model.ignore_merges = kind == "llama-bpe"
    tokenizer.chat_template = "{% for message in messages %}<s>{{ message['content'] }}</s>{% endfor %}"
    folder = write_gguf(file, tiny("llama"), tokenizer=tokenizer)
    found, expected = load_tokenizer(str(file), load_config(str(file))), AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        assert found(text).input_ids == expected(text).input_ids
    assert found.chat_template == tokenizer.chat_template
    assert found.special_tokens_map == expected.special_tokens_map
    rules = [json.loads(each.backend_tokenizer.to_str()) for each in (found, expected)]
    assert rules[0]["model"]["ignore_merges"] == rules[1]["model"]["ignore_merges"]


def test_quantised_weights_become_bfloat16_and_it_is_said(file, caplog):
    folder = write_gguf(file, tiny("llama", "q8_0"), "q8_0")
    assert load_config(str(file)).dtype == torch.bfloat16
    loaded, expected = (logits(load_model(str(model), None, CPU)) for model in (file, folder))
    assert (loaded - expected).abs().max() < 0.05 * expected.abs().max()
    said = [record.getMessage() for record in caplog.records if "Q8_0" in record.getMessage()]
    assert len(said) == 1
    assert "read as bfloat16" in said[0]
    assert "not quantised" in said[0]


def test_a_file_is_converted_once_and_again_when_it_changes(file, cache, monkeypatch):
    write_gguf(file, tiny("llama"))
    first, hashes = plain_folder(str(file)), contents(str(file), "config.json")
    examine = gguf_files._examine
    monkeypatch.setattr(gguf_files, "_examine", None)
    assert plain_folder(str(file)) == first
    monkeypatch.setattr(gguf_files, "_examine", examine)
    write_gguf(file, tiny("llama", seed=1))
    assert plain_folder(str(file)) != first
    assert contents(str(file), "config.json") != hashes
    assert len([path for path in cache.iterdir() if path.is_dir()]) == 2


def test_other_names_stay_as_they_are(tmp_path):
    (tmp_path / "folder.gguf").mkdir()
    for name in ("owner/model", str(tmp_path / "folder.gguf")):
        assert plain_folder(name) == name


def test_a_converted_folder_needs_neither_the_file_nor_tuneprune(file, tmp_path):
    folder = write_gguf(file, tiny("llama"))
    convert_gguf(file, tmp_path / "plain")
    file.unlink()
    assert_same(tmp_path / "plain", folder)


@pytest.mark.parametrize(
    ("variant", "changes", "says"),
    [
        ("llama", {"drop": 1}, "20 tensors .* has 21"),
        ("llama", {"llama__logit_scale": 2.0}, "`llama.logit_scale`"),
        ("llama", {"llama__block_count": 2**30}, "block_count=1073741824"),
        ("llama", {"tokenizer__ggml__model": "rwkv"}, "tokenizer .* is `rwkv`"),
        ("llama_mha_biased", {}, "35 tensors .* has 21"),
        ("llama3", {}, "not the RoPE of Llama 3"),
    ],
)
def test_what_would_be_lost_is_refused(file, cache, variant, changes, says):
    write_gguf(file, tiny(variant))
    rewrite(file, **changes)
    with pytest.raises(TunePruneError, match=says):
        plain_folder(str(file))
    assert not cache.exists()


def test_unknown_rules_of_the_tokenizer_are_said(file, caplog):
    write_gguf(file, tiny("llama"))
    rewrite(file, tokenizer__ggml__pre="hunyuan")
    plain_folder(str(file))
    assert "`hunyuan`" in caplog.text
