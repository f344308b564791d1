"""llama.cpp turns text into the tokens that transformers turns it into, or the export says where not."""

import json
from importlib.util import find_spec

import pytest
from exports.gguf_files import TOLERANCE, check_run, converted, save
from helpers.toy_tokenizer import byte_tokenizer, piece_tokenizer, tiny_tokenizer
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tuneprune.errors import UnsupportedExport
from tuneprune.export import reference

gguf = pytest.importorskip("gguf", reason="needs the extra `gguf`")
pytestmark = pytest.mark.skipif(find_spec("llama_cpp") is None, reason="needs the extra `gguf`")


@pytest.mark.parametrize("make", [byte_tokenizer, piece_tokenizer, tiny_tokenizer])
def test_tokenizers(tmp_path, make):
    found = converted(save(tmp_path / "model", "llama", "width", tokenizer=make()), tmp_path / "gguf")
    tokens = found["proof"]["tokens"]
    # whole words: llama.cpp takes every Chinese character and every one of several punctuation marks for a word
    assert set(tokens["differ"]) <= (set(reference.HARD_TEXTS) if make is tiny_tokenizer else set())
    assert tokens["special_tokens_equal"] == (make is not tiny_tokenizer)


def test_special_tokens_and_the_chat_template(tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([AddedToken("<|user|>", special=True)])
    tokenizer.chat_template = "{% for m in messages %}<|user|>{{ m['content'] }}{% endfor %}"
    special = [("<s>", 1)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", pair=None, special_tokens=special)
    source = save(tmp_path / "model", "llama", "width", tokenizer=tokenizer, vocab_size=304)
    check_run(converted(source, tmp_path / "gguf"))
    fields = gguf.GGUFReader(tmp_path / "gguf" / "model-f32.gguf").fields
    assert fields["tokenizer.chat_template"].contents() == tokenizer.chat_template
    assert fields["tokenizer.ggml.add_bos_token"].contents() is True
    assert fields["tokenizer.ggml.tokens"].contents(300) == "<|user|>"
    assert fields["tokenizer.ggml.token_type"].contents(300) == 3
    assert fields["tokenizer.ggml.pre"].contents() == "gpt-2"


def test_a_tokenizer_that_transformers_replaces_is_written_as_replaced(tmp_path):
    source = save(tmp_path / "model", "qwen2", "width")
    stored = json.loads((source / "tokenizer.json").read_text())
    assert AutoTokenizer.from_pretrained(source).backend_tokenizer.to_str() != json.dumps(stored)
    check_run(converted(source, tmp_path / "gguf"))


def test_a_file_without_a_tokenizer(tmp_path):
    source = save(tmp_path / "model", "llama", "width")
    found = converted(source, tmp_path / "gguf", "gguf:type=f32:tokenizer=none")
    assert found["proof"]["logits"]["max_rel_diff"] <= TOLERANCE
    assert "tokens" not in found["proof"]


@pytest.mark.parametrize(
    ("digits", "ignores_merges", "name"),
    [(r"\p{N}{1,3}", True, "llama-bpe"), (r"\p{N}{1,3}", False, "smaug-bpe"), (r"\p{N}", False, "qwen2")],
)
def test_splits_are_known_by_their_expression(tmp_path, digits, ignores_merges, name):
    tokenizer = byte_tokenizer()
    words = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
    rest = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    split = pre_tokenizers.Split(Regex(f"{words}|{digits}|{rest}"), "isolated")
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, level])
    tokenizer.backend_tokenizer.model.ignore_merges = ignores_merges
    check_run(converted(save(tmp_path / "model", "llama", "width", tokenizer=tokenizer), tmp_path / "gguf"))
    fields = gguf.GGUFReader(tmp_path / "gguf" / "model-f32.gguf").fields
    assert fields["tokenizer.ggml.pre"].contents() == name


def test_an_unknown_split_is_told(tmp_path):
    tokenizer = byte_tokenizer()
    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Punctuation(), level])
    found = converted(save(tmp_path / "model", "llama", "width", tokenizer=tokenizer), tmp_path / "gguf")
    assert "llama.cpp may split text into words otherwise" in found["details"]["notes"][0]


def test_a_tokenizer_without_a_counterpart_is_refused(tmp_path):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.Unigram([("a", 0.0), ("b", -1.0)], 0)))
    source = save(tmp_path / "model", "llama", "width", tokenizer=tokenizer)
    with pytest.raises(UnsupportedExport, match=r"type Unigram.*gguf:tokenizer=none"):
        converted(source, tmp_path / "gguf")
