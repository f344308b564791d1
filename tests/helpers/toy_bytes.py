"""Tokenizers with one token per byte, which put given tokens before every text."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast


def in_front(*ids):
    """A post-processor that puts tokens before every text, as LLaMA's does with BOS."""
    special = [(f"<{index}>", index) for index in ids]
    return processors.TemplateProcessing(single=[*(name for name, _ in special), "$A"], special_tokens=special)


def byte_level_tokenizer(*front, **names):
    """One token per byte, so that ids can be counted by hand; puts the ids `front` before every text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<pad>", "<s>", "</s>", *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if front:
        backend.post_processor = in_front(*front)
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)
