"""The tokenizer inside a GGUF file, derived from the tokenizer of the folder."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import GGUFWriter, TokenType
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from tuneprune.errors import UnsupportedExport

SPACE = "▁"
"""Represents a space in tokens of SentencePiece, and begins a word in llama.cpp's word pieces."""
CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
)
REST_WITH_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS = {
    f"{CONTRACTIONS}|{WORDS}|" + r"\p{N}{1,3}|" + REST: ("smaug-bpe", "llama-bpe"),
    f"{CONTRACTIONS}|{WORDS}|" + r"\p{N}|" + REST: ("qwen2", None),
    "|".join((*CASED, r"\p{N}", REST_WITH_SLASH)): (None, "tekken"),
    "|".join((*(f"{part}{CONTRACTIONS}?" for part in CASED), r"\p{N}{1,3}", REST_WITH_SLASH)): ("gpt-4o", None),
}
"""llama.cpp's names of pre-tokenizers, by the expression that splits text: without and with `ignore_merges`.

With it, a word that is a token is not split by merges; llama.cpp decides that by the name, too.
"""
UNKNOWN_SPLIT = "default"
SENTENCEPIECE = "llama"
"""llama.cpp's name of a tokenizer whose merges follow from scores."""
NO_MERGE = "\ufffe \ufffe"
"""A merge of characters that byte-level text never contains: llama.cpp needs at least one."""
PHI_3 = {"<unk>", "<s>", "</s>", "<|endoftext|>"}
"""Tokens without which llama.cpp does not load a model that has Phi-3's name."""


@dataclass(frozen=True)
class Vocabulary:
    """Tokens by id with their types, and how text becomes them; `merges` in order, `scores` where those decide.

    `note` is what may differ from the model's own tokenizer.
    """

    model: str
    split: str
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    add_space: bool = False
    strips: bool = False
    note: str | None = None

    @property
    def name(self) -> str | None:
        """A name for the model that makes llama.cpp drop white space behind special tokens, as Phi-3 does."""
        return "phi-3" if self.strips and set(self.tokens) >= PHI_3 else None


def load(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder.

    Raises:
        UnsupportedExport: it is not one of the tokenizers library, so its rules cannot be read.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if not tokenizer.is_fast:
        raise UnsupportedExport(
            "GGUF: the model has no fast tokenizer, from which the tokenizer inside the file is made. Save it with one,"
            " or write the file without a tokenizer by `gguf:tokenizer=none`."
        )
    return tokenizer


def read(tokenizer: PreTrainedTokenizerBase, rows: int) -> Vocabulary:
    """The vocabulary of a tokenizer, filled up to the `rows` of the embedding.

    The rules are those of the loaded tokenizer: for some families transformers ignores parts of `tokenizer.json`.

    Raises:
        UnsupportedExport: a tokenizer that llama.cpp has no counterpart for.
    """
    backend: Any = tokenizer.backend_tokenizer  # pyright: ignore[reportAttributeAccessIssue]  (a fast one has it)
    stored = json.loads(backend.to_str())
    model = stored["model"]
    if model["type"] not in ("BPE", "WordLevel"):
        raise UnsupportedExport(
            f"GGUF: a tokenizer of type {model['type']} is not supported; BPE and WordLevel are. Write the file without"
            " a tokenizer by `gguf:tokenizer=none`."
        )
    tokens, types = _tokens(stored, rows)
    if model["type"] == "WordLevel":
        return _words(tokens, types)
    if model.get("byte_fallback"):
        return _sentencepiece(stored, tokens, types)
    merges = tuple(_merge(pair) for pair in model["merges"]) or (NO_MERGE,)
    split = _split(stored.get("pre_tokenizer"), ignores_merges=bool(model.get("ignore_merges")))
    note = None
    if split is None:
        note = (
            "llama.cpp may split text into words otherwise: none of its pre-tokenizers is known to match this model's"
        )
    return Vocabulary("gpt2", split or UNKNOWN_SPLIT, tokens, types, merges, note=note)


def write(writer: GGUFWriter, vocabulary: Vocabulary, tokenizer: PreTrainedTokenizerBase) -> None:
    """All tokenizer keys: the vocabulary, the special tokens, which of them a text gets, and the chat template."""
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.split)
    writer.add_token_list(list(vocabulary.tokens))
    writer.add_token_types(list(vocabulary.types))
    if vocabulary.scores:
        writer.add_token_scores(list(vocabulary.scores))
    if vocabulary.model == "gpt2":
        writer.add_token_merges(list(vocabulary.merges))
    if vocabulary.model == SENTENCEPIECE:
        writer.add_add_space_prefix(vocabulary.add_space)
    ids: dict[str, Any] = {kind: getattr(tokenizer, f"{kind}_token_id", None) for kind in ("bos", "eos", "unk", "pad")}
    if vocabulary.model == "bert":
        writer.add_bool("tokenizer.ggml.normalizer.lowercase", val=False)
        ids["sep"] = ids["eos"]
    for kind, index in ids.items():
        if index is not None:
            getattr(writer, f"add_{kind}_token_id")(index)
    whole, bare = (tokenizer("a", add_special_tokens=added)["input_ids"] for added in (True, False))
    is_longer = len(whole) > len(bare)
    writer.add_add_bos_token(is_longer and whole[0] == ids["bos"])
    writer.add_add_eos_token(is_longer and whole[-1] == ids["eos"])
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def _tokens(stored: Mapping[str, Any], rows: int) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Every token's text and type; ids without a token are unused."""
    texts = {index: text for text, index in stored["model"]["vocab"].items()}
    added = {token["id"]: token for token in stored["added_tokens"]}
    texts |= {index: token["content"] for index, token in added.items()}
    if max(texts) >= rows:
        raise UnsupportedExport(
            f"GGUF: the tokenizer has {max(texts) + 1} tokens, but the embedding only {rows} rows. Use a tokenizer that"
            " belongs to the model."
        )
    unknown = stored["model"].get("unk_token")
    types = []
    for index in range(rows):
        token = added.get(index)
        if index not in texts:
            types.append(TokenType.UNUSED)
        elif texts[index] == unknown:
            types.append(TokenType.UNKNOWN)
        elif token is not None:
            types.append(TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED)
        elif stored["model"].get("byte_fallback") and _is_byte(texts[index]):
            types.append(TokenType.BYTE)
        else:
            types.append(TokenType.NORMAL)
    tokens = tuple(texts.get(index, f"[unused{index}]") for index in range(rows))
    return tokens, tuple(int(kind) for kind in types)


def _is_byte(text: str) -> bool:
    return len(text) == 6 and text.startswith("<0x") and text.endswith(">")


def _words(tokens: tuple[str, ...], types: tuple[int, ...]) -> Vocabulary:
    """Whole words, which llama.cpp knows as word pieces of which none continues a word."""
    normal = int(TokenType.NORMAL)
    marked = tuple(SPACE + text if kind == normal else text for text, kind in zip(tokens, types, strict=True))
    note = "llama.cpp puts the begin and end tokens around every text that it splits into whole words"
    return Vocabulary("bert", UNKNOWN_SPLIT, marked, types, note=note)


def _sentencepiece(stored: Mapping[str, Any], tokens: tuple[str, ...], types: tuple[int, ...]) -> Vocabulary:
    """SentencePiece's BPE, which merges whichever neighbours make the token of the highest score.

    Raises:
        UnsupportedExport: it has no tokens for single bytes, without which llama.cpp does not load it.
    """
    if int(TokenType.BYTE) not in types:
        raise UnsupportedExport(
            "GGUF: the tokenizer falls back on bytes, but has no tokens for them, without which llama.cpp does not load"
            " it. Write the file without a tokenizer by `gguf:tokenizer=none`."
        )
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(stored["model"]["merges"]):
        first, second = pair.split(" ") if isinstance(pair, str) else pair
        ranks.setdefault(first + second, rank)
    scores = tuple(-float(ranks.get(text, len(ranks))) for text in tokens)
    normalizer, splitter = json.dumps(stored.get("normalizer")), stored.get("pre_tokenizer") or {}
    add_space = '"Prepend"' in normalizer or splitter.get("prepend_scheme", "never") != "never"
    strips = any(token["rstrip"] for token in stored["added_tokens"])
    return Vocabulary(SENTENCEPIECE, UNKNOWN_SPLIT, tokens, types, scores=scores, add_space=add_space, strips=strips)


def _merge(pair: str | Sequence[str]) -> str:
    return pair if isinstance(pair, str) else " ".join(pair)


def _split(splitter: Mapping[str, Any] | None, *, ignores_merges: bool) -> str | None:
    """llama.cpp's name of a pre-tokenizer, or None where it has none that is known to be the same."""
    if splitter is None:
        return None
    steps = splitter["pretokenizers"] if splitter["type"] == "Sequence" else [splitter]
    expressions = [step["pattern"].get("Regex") for step in steps if step["type"] == "Split"]
    kinds = [step["type"] for step in steps]
    if kinds == ["Split", "ByteLevel"] and not steps[1].get("use_regex", True):
        return SPLITS.get(expressions[0], (None, None))[ignores_merges]
    if ignores_merges or steps[-1].get("add_prefix_space") or not steps[-1].get("use_regex", True):
        return None
    if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits"):
        return "smollm"
    return "gpt-2" if kinds == ["ByteLevel"] else None
