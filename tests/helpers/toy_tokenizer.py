"""Tokenizers built on the spot: one of 60 words, where every other word is <unk>, and two that know every text."""

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

WORDS = ["the", "cat", "dog", "sat", "ran", "on", "under", "mat", "tree", "and", "then", "it", "was", "happy", "sad"]


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3}
    vocabulary |= {word: index for index, word in enumerate(WORDS, start=4)}
    vocabulary |= {f"word{index}": index for index in range(len(vocabulary), 64)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of 300 tokens, which knows every text; some families accept only this kind."""
    pieces = ["th", "the", "Ġthe", "an", "and", "Ġand", "in", "er", "re", "on", "at", "en", "nd", "st", "es", "ti"]
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("a", "n"), ("an", "d"), ("Ġ", "and"), ("i", "n"), ("e", "r")]
    merges += [("r", "e"), ("o", "n"), ("a", "t"), ("e", "n"), ("n", "d"), ("s", "t"), ("e", "s"), ("t", "i")]
    tokens = ["<pad>", "<s>", "</s>", "<unk>", *sorted(pre_tokenizers.ByteLevel.alphabet()), *pieces]
    tokens += [f"<unused{index}>" for index in range(300 - len(tokens))]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def piece_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer like SentencePiece's, of 300 tokens: merged pieces of text, and bytes for everything else."""
    letters = "▁abcdefghilmnoprstuvwy"
    merges = [("▁", "t"), ("h", "e"), ("▁", "a"), ("▁t", "he"), ("n", "d"), ("i", "n"), ("▁a", "nd"), ("e", "r")]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += [first + second for first, second in merges] + list(letters)
    tokens += [f"<unused{index}>" for index in range(300 - len(tokens))]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    replaced = decoders.Replace("▁", " ")
    tokenizer.decoder = decoders.Sequence(
        [replaced, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
