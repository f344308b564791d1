"""GGUF files as models: each is converted once into a plain Hugging Face folder, from which everything else reads.

transformers reads the file; what it would silently leave out is refused here, and what it reads inexactly is restored.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from huggingface_hub import constants
from huggingface_hub.utils import WeakFileLock
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from tuneprune.errors import ConfigError, UnsupportedModel, wrap_errors
from tuneprune.model import gguf_rules
from tuneprune.system import model_folder
from tuneprune.system.progress import remark
from tuneprune.system.storage import make_folder, reason, replacing_folder

SUFFIX, MAGIC = ".gguf", b"GGUF"
FORMAT = 1
"""Changes whenever the same file is converted to other bytes."""
CONVERSION = "gguf.json"
AGAIN = "Download it again."
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""The precision that holds what is stored; quantised weights become bfloat16."""


def plain_folder(model: str) -> str:
    """The folder into which a GGUF file is converted, which happens at the first call; other names as they are.

    It lies in `tuneprune` in the cache of Hugging Face (HF_HOME) and belongs to the contents of the file. Says once a
    process what the conversion loses.

    Raises:
        ConfigError: no such file, one that cannot be read, or a cache that cannot be written.
        UnsupportedModel: a file that holds something that would be lost.
    """
    file = Path(model)
    if file.suffix.lower() != SUFFIX or file.is_dir():
        return model
    if not file.is_file():
        raise ConfigError(f"model: there is no file {model}. Name a GGUF file, a Hugging Face folder or a hub id.")
    made_by = f"{_sha256(file.resolve(), file.stat().st_mtime_ns)} {FORMAT} {transformers.__version__}"
    name = f"{file.stem}-{hashlib.sha256(made_by.encode()).hexdigest()[:16]}"
    folder = Path(constants.HF_HOME) / "tuneprune" / name
    if not folder.is_dir():
        _convert_once(_examine(file), folder)
    found = model_folder.read_json(folder / CONVERSION, "model")
    lost = "" if found["stored"] in DTYPES else ", and the result is not quantised"
    remark(
        f"{model}: most of its weights are stored as {found['stored']}; they are read as {found['dtype']}, from a copy"
        f" in {folder}{lost}."
    )
    return str(folder)


def convert_gguf(file: Path, folder: Path) -> None:
    """Write a GGUF file as a Hugging Face folder: weights, config, tokenizer, chat template and generation settings.

    Weights are stored as the file has most of them, in float32, float16 or bfloat16; quantised ones in bfloat16.

    Raises:
        ConfigError: a file that cannot be read, or the package `gguf` is missing.
        UnsupportedModel: an architecture, a setting or tensors that would not be read.
        OSError: the disk refused the write.
    """
    _examine(file).write(folder)


@dataclass(frozen=True)
class _GgufModel:
    """A file that passed every check that can be made without reading its weights, and what they found.

    `stored` is the type that most of its weights have, by llama.cpp's name; `empty` is on the meta device.
    """

    file: Path
    stored: str
    empty: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    def write(self, folder: Path) -> None:
        config, dtype = self.empty.config, self.empty.config.dtype
        with wrap_errors(f"model: cannot read the weights in {self.file}", advice=AGAIN), _quiet():
            options: dict[str, Any] = {"gguf_file": self.file.name, "config": config, "output_loading_info": True}
            both: Any = AutoModelForCausalLM.from_pretrained(self.file.parent, dtype=dtype, **options)
        loaded, info = both
        if info["missing_keys"]:
            raise UnsupportedModel(
                f"model: {self.file} lacks weights of a {config.model_type}, such as {min(info['missing_keys'])}."
                f" {gguf_rules.INSTEAD}"
            )
        self.empty.load_state_dict(loaded.state_dict(), assign=True)  # `loaded` counts as quantised: it is not saved
        self.empty.tie_weights()
        self.empty.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        found = {"stored": self.stored, "dtype": str(dtype).removeprefix("torch.")}
        (folder / CONVERSION).write_text(json.dumps(found) + "\n", encoding="utf8")


def _examine(file: Path) -> _GgufModel:
    _check_file(file)
    from gguf import GGUFReader

    try:
        reader = GGUFReader(file)
    except Exception as error:  # whatever the package comes across, and its messages are about shapes of arrays
        raise ConfigError(f"model: {file} is damaged, or its end is missing. {AGAIN}") from error
    gguf_rules.check_metadata(file, reader)
    stored = _stored_as(reader)
    with wrap_errors(f"model: cannot read the settings in {file}", advice=AGAIN):
        named: dict[str, Any] = {"gguf_file": file.name}
        config = AutoConfig.from_pretrained(file.parent, **named)
        gguf_rules.restore_config(config, file, reader)
        config.dtype = DTYPES.get(stored, torch.bfloat16)
        with torch.device("meta"):
            empty = AutoModelForCausalLM.from_config(config)
    gguf_rules.check_tensors(file, reader, empty)
    return _GgufModel(file, stored, empty, _tokenizer(file, reader, config))


def _convert_once(model: _GgufModel, folder: Path) -> None:
    """Write the folder, unless another process of the same run has just done so."""
    try:
        make_folder(folder.parent)
        with WeakFileLock(folder.with_name(f".{folder.name}.lock")):
            if not folder.is_dir():
                with replacing_folder(folder) as partial:
                    model.write(partial)
    except (OSError, SafetensorError) as error:
        raise ConfigError(
            f"model: {model.file} cannot be converted, because {folder} cannot be written: {reason(error)}. Free space"
            " there, or set HF_HOME to a folder on another disk."
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' warnings, which are about weights that stay quantised, or become errors here."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _check_file(file: Path) -> None:
    """Refuse what no package reads, and to go on without the package that reads it."""
    with file.open("rb") as stream:
        start = stream.read(len(model_folder.POINTER))
    if start == model_folder.POINTER:
        raise ConfigError(f"model: {file} is a Git LFS pointer, not the file itself. Run `git lfs pull` there.")
    if not start.startswith(MAGIC):
        raise ConfigError(f"model: {file} is not a GGUF file, as it does not begin with `GGUF`. {AGAIN}")
    if find_spec("gguf") is None:
        raise ConfigError(f"model: {file} is read with the package gguf. Install it: pip install gguf.")


@cache
def _sha256(file: Path, changed: int) -> str:  # noqa: ARG001  (a file that has changed is read again)
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _stored_as(reader: Any) -> str:  # noqa: ANN401  (the package may not be installed)
    """The type that most of the weights have, by llama.cpp's name."""
    counts: Counter[str] = Counter()
    for tensor in reader.tensors:
        counts[tensor.tensor_type.name] += int(np.prod(tensor.shape))
    return counts.most_common(1)[0][0]


def _tokenizer(file: Path, reader: Any, config: PretrainedConfig) -> PreTrainedTokenizerBase:  # noqa: ANN401
    """The tokenizer in the file, with the rules that transformers does not set."""
    kind = gguf_rules.value(reader, "tokenizer.ggml.model")
    if kind in (None, "none", "no_vocab"):
        raise UnsupportedModel(f"model: {file} holds no tokenizer. {gguf_rules.INSTEAD}")
    if kind not in gguf_rules.TOKENIZERS:
        raise UnsupportedModel(
            f"model: the tokenizer in {file} is `{kind}`, but only {', '.join(gguf_rules.TOKENIZERS)} are read."
            f" {gguf_rules.INSTEAD}"
        )
    named: dict[str, Any] = {"gguf_file": file.name, "model_max_length": config.max_position_embeddings}
    with wrap_errors(f"model: cannot read the tokenizer in {file}", advice=AGAIN):
        tokenizer = AutoTokenizer.from_pretrained(file.parent, **named)
        gguf_rules.restore_splits(tokenizer, file, reader)
    return tokenizer
