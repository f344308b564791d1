"""Models and tokenizers from a folder, a GGUF file or the hub, with one-sentence errors for those that cannot work."""

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from tuneprune.calibration.finite import all_finite
from tuneprune.compress.shape import Shape
from tuneprune.errors import ConfigError, UnsupportedModel, wrap_errors
from tuneprune.families import refuse_unknown
from tuneprune.model import corrections
from tuneprune.model.adapters import merge, merged_config
from tuneprune.model.gguf_files import plain_folder
from tuneprune.system import model_folder

SAFELY: dict[str, Any] = {"trust_remote_code": False, "use_safetensors": True}
"""Arguments for transformers wherever it loads untrusted weights."""
GENERATION_CONFIG = "generation_config.json"
NEWER = "If it was saved by newer versions of transformers and tokenizers, upgrade them; if not, download it again."
FIX_CONFIG = "Correct it, or name another model."
TOKENIZER_CONFIG = "tokenizer_config.json"
WEIGHT_NAMES = (".weight", ".qweight", ".weight_packed")


def load_config(model: str, adapter: str | None = None) -> PretrainedConfig:
    """The config of a folder or hub id, as it is with a user's LoRA adapter merged in; weights are not loaded.

    Raises:
        ConfigError: no such folder, no config, or no weights next to it; an adapter that does not belong to it.
        UnsupportedModel: an unsupported family, or weights that are quantised or pruned to uneven widths.
    """
    config = load_any_config(model)
    if hasattr(config, "pruned"):
        raise UnsupportedModel(
            f"model: {model} was already pruned to uneven widths. Prune the dense model to the smaller budget instead,"
            " or fine-tune this one with `tuneprune recover`."
        )
    if adapter is None:
        return config
    check_folder(adapter, "model.adapter", model_folder.ADAPTER_CONFIG)
    model_folder.check_adapter(adapter, "model.adapter")
    return merged_config(adapter, skeleton(config))


def load_any_config(model: str) -> PretrainedConfig:
    """The config of a model that can be tuned, which includes models pruned to uneven widths.

    Raises:
        ConfigError: no such folder, no config, or no weights next to it; a config that does not describe a model.
        UnsupportedModel: an unsupported family, or weights that are quantised.
    """
    model = plain_folder(model)
    config = read_config(model)
    kind = quantisation(config) or _quantised_weight(Path(model))
    if kind:
        raise UnsupportedModel(
            f"model: {model} is quantised ({kind}), so single rows of its weights cannot be removed. Start from the"
            " original weights, or from weights that were dequantised and saved with transformers, and quantise the"
            " result."
        )
    check_generation(model)
    with wrap_errors(f"model: config.json of {model} does not describe a model", advice=FIX_CONFIG):
        Shape.of(config)
        if not hasattr(config, "pruned"):
            empty = skeleton(config)
            check_room(model, empty)
            corrections.follow_files(model, config, empty)
    return config


def read_config(model: str, *, any_family: bool = False, trust_remote_code: bool = False) -> PretrainedConfig:
    """The config of an untrusted folder or hub id, which is checked before transformers reads it.

    Code in the folder does not run unless it is trusted.

    Raises:
        ConfigError: no such folder, no config, or no weights next to it; weights that are pickles; sizes no model has.
        UnsupportedModel: an unsupported family, unless any family is allowed.
    """
    model = plain_folder(model)
    check_folder(model, "model", "config.json")
    model_folder.refuse_adapter(model, "model")
    with wrap_errors(f"model: cannot read config.json of {model}", advice=FIX_CONFIG):
        if Path(model).is_dir():
            model_folder.read_json(Path(model) / "config.json", "model")
        raw, _ = PretrainedConfig.get_config_dict(model)
        model_folder.check_numbers(raw, model, "model")
        model_folder.check_precision(raw, model, "model")
        if not any_family:
            refuse_unknown(str(raw.get("model_type")))
        outputs = corrections.output_settings(model, raw)
        config = AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code, **outputs)
    corrections.replace_missing(model, config)
    return config


def check_room(model: str, empty: PreTrainedModel) -> None:
    """Refuse a config of a model that is larger than its weight files.

    Args:
        empty: the model of the config, on the meta device.

    Raises:
        ConfigError: says how many parameters both have.
    """
    model_folder.check_sizes(sum(parameter.numel() for parameter in empty.parameters()), model, "model")


def check_generation(model: str) -> GenerationConfig | None:
    """The generation settings of a model, None where there are none.

    Raises:
        ConfigError: settings that transformers cannot read; it would fail to load the model, or silently lose them.
    """
    if model_folder.find_file(model, GENERATION_CONFIG, "model") is None:
        return None
    advice = f"Correct {GENERATION_CONFIG}, or remove it."
    with wrap_errors(f"model: the generation settings of {model} are invalid", advice=advice):
        return GenerationConfig.from_pretrained(model)


def quantisation(config: PretrainedConfig) -> str:
    """How a model is quantised, such as `gptq, 4 bits`; empty if its config does not say that it is."""
    raw: Any = getattr(config, "quantization_config", None) or getattr(config, "compression_config", None)
    if not raw:
        return ""
    settings: dict[str, Any] = raw if isinstance(raw, dict) else raw.to_dict()
    loaded = next((bits for bits in (4, 8) if settings.get(f"load_in_{bits}bit")), None)
    bits = loaded or settings.get("bits") or settings.get("w_bit")
    name = settings.get("quant_method") or ("bitsandbytes" if loaded else settings.get("format", "of an unknown kind"))
    return f"{name}, {bits} bits" if bits else str(name)


def _quantised_weight(folder: Path) -> str:
    """The first weight stored in less than 16-bit floating point although the config declares no quantisation."""
    if not folder.is_dir():
        return ""
    for name, kind in model_folder.read_headers(folder, "model").types.items():
        if name.endswith(WEIGHT_NAMES) and kind not in model_folder.FLOATS:
            return f"{name} is stored as {kind}"
    return ""


def needs_own_code(config: PretrainedConfig) -> bool:
    """Whether a model needs the code in its folder, because transformers has no class of that name."""
    named = (config.architectures or [""])[0]
    return bool(getattr(config, "auto_map", None)) and not hasattr(transformers, named)


def check_folder(name: str, key: str, config_file: str) -> None:
    """Refuse a name that is neither a complete folder nor a possible hub id, and weights that could run code.

    Raises:
        ConfigError: says what is missing or wrong.
    """
    folder = Path(name)
    if folder.is_file():
        raise ConfigError(f"{key}: {name} is a file. Name the folder that holds {config_file}.")
    if folder.is_dir():
        if config_file != model_folder.ADAPTER_CONFIG and model_folder.is_adapter(folder):
            raise model_folder.adapter_alone_error(name, model_folder.adapter_base(folder), key)
        if not (folder / config_file).is_file():
            if any(folder.glob("*.gguf")):
                raise ConfigError(f"{key}: {name} has no {config_file}. Name {min(folder.glob('*.gguf'))} itself.")
            raise ConfigError(f"{key}: {name} has no {config_file}. Name a Hugging Face folder or a hub id.")
        model_folder.check_files(folder, key)
        if config_file != model_folder.ADAPTER_CONFIG:
            model_folder.check_names(folder, key)
    elif (folder.parent / "config.yaml").is_file():  # it also looks like a hub id, which takes a minute to look up
        raise ConfigError(f"{key}: the run in {folder.parent} has no {folder.name} yet. Finish it with --resume.")
    elif folder.is_absolute() or name.startswith(".") or name.count("/") != 1:
        raise ConfigError(f"{key}: there is no folder {name}. Name a Hugging Face folder or a hub id (owner/name).")


def load_model(model: str, adapter: str | None, device: torch.device) -> PreTrainedModel:
    """The dense model, with a user's LoRA adapter merged in; float32 on a CPU, the stored precision on a GPU.

    Raises:
        ConfigError: weights or an adapter that cannot be read or hold bad numbers, or an adapter of another base.
        UnsupportedModel: a model that cannot be cut.
    """
    model = plain_folder(model)
    config = load_config(model)
    if adapter is not None:
        load_config(model, adapter)  # to check the adapter
    dtype = torch.float32 if device.type == "cpu" else stored_dtype(config)
    model_folder.check_index(model, "model")
    with wrap_errors(f"model: cannot load {adapter or model}"):
        options = SAFELY | {"config": config, "dtype": dtype, "output_loading_info": True}
        both: Any = AutoModelForCausalLM.from_pretrained(model, **options)
        loaded, info = both
        if info["missing_keys"]:
            raise corrections.incomplete_error(model, info["missing_keys"], info["unexpected_keys"])
        _refuse_changed_config(model, config)
        if adapter is not None:
            loaded = merge(loaded, adapter)
    refuse_bad_weights(loaded, adapter or model)
    corrections.replace_stops(model, loaded)
    corrections.turn_cache_on(model, loaded)
    return loaded.to(device).eval()  # pyright: ignore[reportArgumentType]  (transformers hides its self)


def _refuse_changed_config(model: str, known: PretrainedConfig) -> None:
    """Refuse to continue if files that were just downloaded contradict the config that the plan was based on."""
    config = load_any_config(model)
    if (config.tie_word_embeddings, stored_dtype(config)) != (known.tie_word_embeddings, stored_dtype(known)):
        raise ConfigError(
            f"model: the weights of {model} were just downloaded, and their precision, or whether head and embeddings"
            " are one tensor, differs from its config.json. Start again: the files are then used instead of it."
        )


def refuse_bad_weights(model: PreTrainedModel, name: str) -> None:
    """Refuse weights that are not finite, because no result computed with them would be finite either.

    Raises:
        ConfigError: names the first of them.
    """
    if all_finite(model.parameters()):
        return
    bad = next(path for path, parameter in model.named_parameters() if not all_finite([parameter]))
    raise ConfigError(
        f"model: `{bad}` of {name} holds NaN or infinite numbers, so the model cannot be tuned or pruned. Name a model"
        " whose weights are finite, such as an earlier checkpoint of it."
    )


def load_tokenizer(model: str, config: PretrainedConfig, adapter: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, or of the adapter if it has one; its padding token is one that the model has.

    Args:
        config: the model's, with the adapter merged in.

    Raises:
        ConfigError: there is no tokenizer, or it cannot be loaded.
    """
    if adapter is not None and model_folder.find_file(adapter, TOKENIZER_CONFIG, "model.adapter"):
        corrections.remark(
            f"{adapter}: the tokenizer and the chat template of the adapter are used, not those of its base."
        )
        model = adapter
    model = plain_folder(model)
    folder = Path(model)
    if folder.is_dir() and not any(path.name.startswith(("tokenizer", "vocab")) for path in folder.iterdir()):
        raise ConfigError(
            f"model: {model} holds no tokenizer (tokenizer.json or tokenizer.model). Put the files of its tokenizer"
            " next to the weights; the model that it was tuned from has them."
        )
    with wrap_errors(f"model: cannot load the tokenizer of {model}", advice=NEWER):
        tokenizer = AutoTokenizer.from_pretrained(model, config=config, trust_remote_code=False)
        tokenizer("a b")  # some settings are only checked here
    corrections.replace_padding(model, tokenizer, vocabulary(config))
    return tokenizer


def vocabulary(config: PretrainedConfig) -> int | None:
    """The number of embeddings in a model's config; None if an untrusted config does not say."""
    return getattr(config.get_text_config(), "vocab_size", None)


def skeleton(config: PretrainedConfig, generation: str | None = None) -> PreTrainedModel:
    """The model on the meta device: shapes without memory for weights.

    Args:
        generation: folder or hub id whose generation settings the model gets, if it has any.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    if generation is not None:
        model.generation_config = check_generation(generation) or model.generation_config
        corrections.replace_stops(generation, model)
        corrections.turn_cache_on(generation, model)
    return model


def cast_weights(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """The model with its weights in `dtype`, in place.

    Unlike `model.to(dtype)` it does not cast buffers: RoPE frequencies stay in float32, as in a loaded model.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def stored_dtype(config: PretrainedConfig) -> torch.dtype:
    """The precision in which the weights are stored; the result is stored in it too."""
    return config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
