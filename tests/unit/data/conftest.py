import copy
import json
import os
from pathlib import Path

import pytest
from helpers import toy_templates as templates
from helpers.toy_bytes import byte_level_tokenizer, in_front
from tokenizers import Tokenizer, models, normalizers
from transformers import PreTrainedTokenizerFast

from tuneprune.data import SourceConfig, encode, read_source

CHAT = (
    "{{ '<s>' }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}</s>{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


@pytest.fixture(scope="session")
def tokenizer():
    return byte_level_tokenizer(1, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="session")
def chat_tokenizer():
    tokenizer = byte_level_tokenizer(1, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = CHAT
    return tokenizer


@pytest.fixture(scope="session")
def bare_tokenizer():
    """Without BOS, as Qwen's."""
    return byte_level_tokenizer(pad_token="<pad>", eos_token="</s>")


@pytest.fixture(scope="session")
def spaced_tokenizer():
    """Puts a space before every text by itself, as LLaMA 2's."""
    characters = "▁abcdefghijklmnopqrstuvwxyzA:"
    vocabulary = {token: index for index, token in enumerate(["<unk>", "<s>", "</s>", *characters])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.post_processor = in_front(1)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


@pytest.fixture
def real_data(monkeypatch):
    """The real data sets, or a skip."""
    repository = Path(__file__).parents[3]
    folder = Path(os.environ.get("TUNEPRUNE_DATA") or repository.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"needs the real data sets in TUNEPRUNE_DATA or {folder}")
    monkeypatch.setenv("TUNEPRUNE_DATA", str(folder))
    return folder


@pytest.fixture
def read(tmp_path, tokenizer):
    """Reads one record with a template and returns the example."""

    def read(record, template=templates.CHATML, **options):
        chat = copy.deepcopy(tokenizer)
        chat.chat_template = template
        path = tmp_path / "a.jsonl"
        path.write_text(json.dumps(record), encoding="utf8")
        (example,) = read_source(SourceConfig(path=path), chat, "train", **options)
        ids = encode(example, chat, 10_000).input_ids
        assert chat.decode(ids) == example.prompt + example.completion
        return example

    return read
