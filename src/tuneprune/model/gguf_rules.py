"""What a GGUF file may hold so that transformers reads all of it, and corrections of what it reads inexactly."""

from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from tokenizers import normalizers, pre_tokenizers
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from tuneprune.errors import UnsupportedModel
from tuneprune.system import model_folder
from tuneprune.system.progress import remark

Reader: TypeAlias = Any
"""A GGUFReader of the package gguf, which may not be installed."""
INSTEAD = "Name the Hugging Face folder or hub id that it was made from."
ARCHITECTURES = ("llama", "qwen2", "qwen3", "phi3", "starcoder2")
"""Those that are read without loss, as tests show by writing and reading them."""
KEYS = (
    "vocab_size",
    "context_length",
    "embedding_length",
    "block_count",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.layer_norm_rms_epsilon",
    "attention.layer_norm_epsilon",
    "attention.key_length",
    "attention.value_length",
    "rope.freq_base",
    "rope.dimension_count",
)
"""Settings of an architecture that are read; any other may change what the model computes."""
SENTENCEPIECE = "llama"
TOKENIZERS = ("gpt2", SENTENCEPIECE)
DIGITS = ("smollm", "starcoder", "refact")
"""Pre-tokenizers that split off single digits before they split as GPT-2 does."""
WHOLE_WORDS = ("llama3", "llama-v3", "llama-bpe", "tekken")
"""Pre-tokenizers with which a word that is a token is not split by merges."""
SPLITS = (*DIGITS, *WHOLE_WORDS, "gpt-2", "smaug-bpe", "qwen2", "gpt-4o")
LLAMA_3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""RoPE of Llama 3.1 and later, which a file holds as divisors of frequencies only; the factor is the largest one."""
FREQUENCIES = "rope_freqs.weight"


def value(reader: Reader, key: str, default: Any = None) -> Any:  # noqa: ANN401  (any type that a file can hold)
    """A value of the file's metadata."""
    field = reader.get_field(key)
    return default if field is None else field.contents()


def check_metadata(file: Path, reader: Reader) -> None:
    """Refuse a part of a model, and settings that would not be read or that no model has.

    Raises:
        UnsupportedModel: says what is not read.
    """
    parts = value(reader, "split.count", 1)
    if parts > 1:
        raise UnsupportedModel(
            f"model: {file} is one of {parts} parts of a model, and only whole files are read. Join them with"
            " llama.cpp's `llama-gguf-split --merge`."
        )
    name = value(reader, "general.architecture")
    if name not in ARCHITECTURES:
        raise UnsupportedModel(
            f"model: {file} is for llama.cpp's architecture `{name}`, but only {', '.join(ARCHITECTURES)} are read"
            f" without loss. {INSTEAD}"
        )
    unread = sorted(
        key for key in reader.fields if key.startswith(f"{name}.") and key.removeprefix(f"{name}.") not in KEYS
    )
    if unread:
        raise UnsupportedModel(
            f"model: {file} has the setting `{unread[0]}`, which is not read, so the model might compute something else"
            f" here. {INSTEAD}"
        )
    layers, tensors = value(reader, f"{name}.block_count", 0), len(reader.tensors)
    if not isinstance(layers, int) or not 0 < layers <= tensors:
        raise UnsupportedModel(f"model: {file} says block_count={layers!r:.40} but holds {tensors} tensors. {INSTEAD}")


def restore_config(config: Any, file: Path, reader: Reader) -> None:  # noqa: ANN401  (every family has its own class)
    """Set, in place, what transformers does not read: head width, RoPE of Llama 3, and decimals before rounding.

    Raises:
        ConfigError: a size that no model has.
        UnsupportedModel: frequencies of RoPE that no setting of transformers gives.
    """
    architecture = value(reader, "general.architecture")
    head = value(reader, f"{architecture}.attention.key_length")
    if head is not None and hasattr(config, "head_dim"):
        config.head_dim = head
    for name, number in vars(config).items():
        if isinstance(number, float):
            setattr(config, name, _short(number))
    for name, number in config.rope_parameters.items():
        if isinstance(number, float):
            config.rope_parameters[name] = _short(number)
    config.name_or_path = ""
    for name in ("_model_name_or_path", "unk_token_id"):  # keys of the file that configs do not have
        vars(config).pop(name, None)
    model_folder.check_numbers(config.to_dict(), str(file), "model")
    divisors = next((tensor.data for tensor in reader.tensors if tensor.name == FREQUENCIES), None)
    if divisors is not None:
        _restore_rope(config, file, torch.tensor(np.array(divisors)))


def _short(number: float) -> float:
    """The shortest decimal that float32 rounds to `number`, which the file stores in float32."""
    return float(str(np.float32(number))) if float(np.float32(number)) == number else number


def _restore_rope(config: Any, file: Path, divisors: torch.Tensor) -> None:  # noqa: ANN401
    theta = config.rope_parameters["rope_theta"]
    plain, _ = ROPE_INIT_FUNCTIONS["linear"](_with_rope(config, theta, "linear", factor=1.0), torch.device("cpu"))
    config = _with_rope(config, theta, "llama3", factor=_short(divisors.max().item()), **LLAMA_3)
    found, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    if divisors.shape != plain.shape or not torch.allclose(found, plain / divisors, rtol=1e-4, atol=0):
        raise UnsupportedModel(f"model: `{FREQUENCIES}` in {file} is not the RoPE of Llama 3. {INSTEAD}")


def _with_rope(config: Any, theta: float, kind: str, **settings: float) -> PretrainedConfig:  # noqa: ANN401
    config.rope_parameters = {"rope_theta": theta, "rope_type": kind, **settings}
    return config


def check_tensors(file: Path, reader: Reader, model: PreTrainedModel) -> None:
    """Refuse a file whose tensors are not those of the model that its settings describe.

    transformers leaves out tensors for which it has no place, such as biases.

    Args:
        model: on the meta device.

    Raises:
        UnsupportedModel: says what both hold.
    """
    sizes = [int(np.prod(tensor.shape)) for tensor in reader.tensors if tensor.name != FREQUENCIES]
    wanted = [parameter.numel() for parameter in model.parameters()]
    if (len(sizes), sum(sizes)) != (len(wanted), sum(wanted)):
        raise UnsupportedModel(
            f"model: {file} holds {len(sizes)} tensors of {sum(sizes):,} numbers together, but the"
            f" {model.config.model_type} that its settings describe has {len(wanted)} of {sum(wanted):,}. {INSTEAD}"
        )


def restore_splits(tokenizer: PreTrainedTokenizerBase, file: Path, reader: Reader) -> None:
    """Split text into words, in place, as the file says, where transformers does not; say so where nobody can."""
    backend: Any = tokenizer.backend_tokenizer  # pyright: ignore[reportAttributeAccessIssue]  (it is a fast one)
    name = value(reader, "tokenizer.ggml.pre", "default")
    if value(reader, "tokenizer.ggml.model") == SENTENCEPIECE:
        prefix = [normalizers.Prepend("▁")] if value(reader, "tokenizer.ggml.add_space_prefix", True) else []
        backend.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", "▁")])
        backend.pre_tokenizer = None  # like llama.cpp: a space before every text, also behind special tokens
    elif name in DIGITS:
        digits = pre_tokenizers.Digits(individual_digits=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    elif name in WHOLE_WORDS:
        backend.model.ignore_merges = True
    elif name not in SPLITS:
        remark(
            f"{file}: text is split into words by the rules `{name}`, which are not known here; GPT-2's are used, so"
            " some texts may become other tokens than in llama.cpp."
        )
