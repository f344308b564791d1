"""Models and tokenizers from a folder or the hub, refused in one sentence when they cannot work."""

import json
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from tuneprune.errors import ConfigError, UnsupportedModel
from tuneprune.families import describe_config

WEIGHTS = ("*.safetensors", "*.bin")


def load_config(model: str) -> PretrainedConfig:
    """The config of a folder or hub id, without its weights.

    Raises:
        ConfigError: no such folder, no config, or no weights beside it.
        UnsupportedModel: a family nobody described.
    """
    folder = Path(model)
    if folder.is_file():
        raise ConfigError(f"model: {model} is a file. Name the folder that holds config.json.")
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ConfigError(f"model: {model} has no config.json. Name a Hugging Face model folder or a hub id.")
        if not any(next(folder.glob(pattern), None) for pattern in WEIGHTS):
            raise ConfigError(f"model: {model} holds no weights (*.safetensors). Download them beside config.json.")
    elif folder.is_absolute() or model.startswith(".") or model.count("/") != 1:
        raise ConfigError(
            f"model: there is no folder {model}. Name a Hugging Face model folder or a hub id (owner/name)."
        )
    try:
        config = AutoConfig.from_pretrained(model)
    except (OSError, ValueError, KeyError, json.JSONDecodeError) as error:
        _refuse_unknown(folder)
        raise ConfigError(f"model: cannot read the config of {model}: {_first_line(error)}") from error
    if hasattr(config, "pruned"):
        raise UnsupportedModel(
            f"model: {model} was pruned to uneven widths before; prune the dense model to the smaller budget instead."
        )
    describe_config(config)
    return config


def _refuse_unknown(folder: Path) -> None:
    """Name the known families when transformers itself does not know the model type.

    Raises:
        UnsupportedModel: so it is.
    """
    try:
        model_type = json.loads((folder / "config.json").read_text(encoding="utf8")).get("model_type")
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, AttributeError):
        return
    describe_config(type("Config", (), {"model_type": str(model_type)}))


def load_model(model: str, adapter: str | None, device: torch.device) -> PreTrainedModel:
    """The dense model, with a user's LoRA adapter merged in; float32 on a CPU, the stored precision on a GPU.

    Raises:
        ConfigError: weights or adapter that cannot be read.
        UnsupportedModel: a quantised model, whose weights cannot be cut.
    """
    config = load_config(model)
    if getattr(config, "quantization_config", None):
        raise UnsupportedModel(
            f"model: {model} is quantised. Start from its unquantised weights, and quantise the result."
        )
    dtype = torch.float32 if device.type == "cpu" else (config.dtype or torch.float32)
    try:
        loaded = AutoModelForCausalLM.from_pretrained(model, dtype=dtype)
        if adapter is not None:
            from peft import PeftModel  # costs seconds to import, and few runs have an adapter

            loaded = PeftModel.from_pretrained(loaded, adapter).merge_and_unload()
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ConfigError(f"model: cannot load {adapter or model}: {_first_line(error)}") from error
    loaded.config.use_cache = True
    return loaded.to(device).eval()


def load_tokenizer(model: str) -> PreTrainedTokenizerBase:
    """The tokenizer beside a model.

    Raises:
        ConfigError: there is none.
    """
    try:
        return AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"model: cannot load the tokenizer of {model}: {_first_line(error)}") from error


def skeleton(config: PretrainedConfig) -> PreTrainedModel:
    """The model without memory behind its weights: shapes only."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def stored_dtype(config: PretrainedConfig) -> torch.dtype:
    """The precision the weights are stored in, which the result is stored in too."""
    return config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
