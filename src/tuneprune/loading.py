"""Models and tokenizers from a folder or the hub, refused in one sentence when they cannot work."""

import json
from contextlib import suppress
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from tuneprune.adapters import merge, merged_config
from tuneprune.errors import ConfigError, UnsupportedModel
from tuneprune.families import describe_config

WEIGHTS = ("*.safetensors", "*.bin")
WEIGHT_NAMES = (".weight", ".qweight", ".weight_packed")
FLOATS = ("F64", "F32", "F16", "BF16")


def load_config(model: str, adapter: str | None = None) -> PretrainedConfig:
    """The config of a folder or hub id, without its weights; what it is with a user's LoRA adapter merged in.

    Raises:
        ConfigError: no such folder, no config, or no weights beside it; an adapter that does not belong to it.
        UnsupportedModel: a family nobody described, or weights that are quantised or pruned to uneven widths.
    """
    config = load_any_config(model)
    if hasattr(config, "pruned"):
        raise UnsupportedModel(
            f"model: {model} was pruned to uneven widths before; prune the dense model to the smaller budget instead,"
            " or tune this one on with `tuneprune recover`."
        )
    if adapter is None:
        return config
    check_folder(adapter, "model.adapter", "adapter_config.json")
    return merged_config(adapter, skeleton(config))


def load_any_config(model: str) -> PretrainedConfig:
    """The config of a model that can be tuned, one that was pruned to uneven widths included.

    Raises:
        ConfigError: no such folder, no config, or no weights beside it.
        UnsupportedModel: a family nobody described, or weights that are quantised.
    """
    check_folder(model, "model", "config.json")
    try:
        config = AutoConfig.from_pretrained(model)
    except (OSError, ValueError, KeyError, TypeError) as error:
        _refuse_unknown(Path(model))
        raise ConfigError(f"model: cannot read the config of {model}: {_first_line(error)}") from error
    kind = quantisation(config) or _stored_as(Path(model))
    if kind:
        raise UnsupportedModel(
            f"model: {model} is quantised ({kind}), so single rows of its weights cannot be cut. Start from the weights"
            " that it was quantised from, or from ones that transformers dequantised and saved, and quantise the"
            " result."
        )
    describe_config(config)
    return config


def quantisation(config: PretrainedConfig) -> str:
    """How a model is quantised, such as `gptq, 4 bits`; empty where its config says nothing of it."""
    raw: Any = getattr(config, "quantization_config", None) or getattr(config, "compression_config", None)
    if not raw:
        return ""
    settings: dict[str, Any] = raw if isinstance(raw, dict) else raw.to_dict()
    loaded = next((bits for bits in (4, 8) if settings.get(f"load_in_{bits}bit")), None)
    bits = loaded or settings.get("bits") or settings.get("w_bit")
    name = settings.get("quant_method") or ("bitsandbytes" if loaded else settings.get("format", "of an unknown kind"))
    return f"{name}, {bits} bits" if bits else str(name)


def _stored_as(folder: Path) -> str:
    """The type of weights that no config declares and that are no floating-point numbers of 16 bits or more."""
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="numpy") as stored:
                types = {name: stored.get_slice(name).get_dtype() for name in stored.keys()}  # noqa: SIM118  (not a mapping)
        except (OSError, SafetensorError):
            continue  # loading says what is wrong with it
        for name, kind in types.items():
            if name.endswith(WEIGHT_NAMES) and kind not in FLOATS:
                return f"{name} is stored as {kind}"
    return ""


def needs_own_code(config: PretrainedConfig) -> bool:
    """Whether a model's class is in a file beside its weights, because transformers has none of that name."""
    named = (config.architectures or [""])[0]
    return bool(getattr(config, "auto_map", None)) and not hasattr(transformers, named)


def check_folder(name: str, key: str, config_file: str) -> None:
    """Refuse what is neither a complete folder nor could be a hub id.

    Raises:
        ConfigError: says what is missing.
    """
    folder = Path(name)
    if folder.is_file():
        raise ConfigError(f"{key}: {name} is a file. Name the folder that holds {config_file}.")
    if folder.is_dir():
        if not (folder / config_file).is_file():
            raise ConfigError(f"{key}: {name} has no {config_file}. Name a Hugging Face folder or a hub id.")
        if not any(next(folder.glob(pattern), None) for pattern in WEIGHTS):
            raise ConfigError(f"{key}: {name} holds no weights (*.safetensors). Download them beside {config_file}.")
    elif folder.is_absolute() or name.startswith(".") or name.count("/") != 1:
        raise ConfigError(f"{key}: there is no folder {name}. Name a Hugging Face folder or a hub id (owner/name).")


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
        ConfigError: weights or an adapter that cannot be read, or an adapter of another base.
        UnsupportedModel: a model that cannot be cut.
    """
    config = load_config(model, adapter)
    dtype = torch.float32 if device.type == "cpu" else (config.dtype or torch.float32)
    try:
        both: Any = AutoModelForCausalLM.from_pretrained(model, dtype=dtype, output_loading_info=True)
        loaded, info = both
        if info["missing_keys"]:
            missing = sorted(info["missing_keys"])
            raise ConfigError(
                f"model: the weights of {model} are incomplete: {len(missing)} are missing, such as {missing[0]}."
                " Download the model again."
            )
        if adapter is not None:
            loaded = merge(loaded, adapter)
    except ConfigError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError, UnpicklingError) as error:
        raise ConfigError(f"model: cannot load {adapter or model}: {_first_line(error)}") from error
    loaded.config.use_cache = True
    return loaded.to(device).eval()  # pyright: ignore[reportArgumentType]  (transformers hides its self)


def load_tokenizer(model: str) -> PreTrainedTokenizerBase:
    """The tokenizer beside a model.

    Raises:
        ConfigError: there is none.
    """
    try:
        return AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"model: cannot load the tokenizer of {model}: {_first_line(error)}") from error


def skeleton(config: PretrainedConfig, generation: str | None = None) -> PreTrainedModel:
    """The model without memory behind its weights: shapes only.

    Args:
        generation: folder or hub id whose generation settings the model gets, where it has some.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    if generation is not None:
        with suppress(OSError):
            model.generation_config = GenerationConfig.from_pretrained(generation)
    return model


def cast_weights(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """The model with its weights in `dtype`, in place.

    Unlike `model.to(dtype)` it leaves buffers alone: the frequencies of RoPE stay in float32, as in a loaded model.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def stored_dtype(config: PretrainedConfig) -> torch.dtype:
    """The precision the weights are stored in, which the result is stored in too."""
    return config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
