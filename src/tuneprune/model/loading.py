"""Models and tokenizers from a folder or the hub, refused in one sentence when they cannot work."""

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
from tuneprune.system import model_folder

SAFELY: dict[str, Any] = {"trust_remote_code": False, "use_safetensors": True}
"""What transformers is told wherever it loads weights that anybody may have made."""
GENERATION_CONFIG = "generation_config.json"
NEWER = "If newer versions of transformers and tokenizers made it, upgrade them; if not, download it again."
TOKENIZER_CONFIG = "tokenizer_config.json"
WEIGHT_NAMES = (".weight", ".qweight", ".weight_packed")


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
    check_folder(adapter, "model.adapter", model_folder.ADAPTER_CONFIG)
    model_folder.check_adapter(adapter, "model.adapter")
    return merged_config(adapter, skeleton(config))


def load_any_config(model: str) -> PretrainedConfig:
    """The config of a model that can be tuned, one that was pruned to uneven widths included.

    Raises:
        ConfigError: no such folder, no config, or no weights beside it; one that describes no model.
        UnsupportedModel: a family nobody described, or weights that are quantised.
    """
    config = read_config(model)
    kind = quantisation(config) or _quantised_weight(Path(model))
    if kind:
        raise UnsupportedModel(
            f"model: {model} is quantised ({kind}), so single rows of its weights cannot be cut. Start from the weights"
            " that it was quantised from, or from ones that transformers dequantised and saved, and quantise the"
            " result."
        )
    check_generation(model)
    with wrap_errors(f"model: config.json of {model} describes no model", advice="Correct it, or name another model."):
        Shape.of(config)
        if not hasattr(config, "pruned"):
            empty = skeleton(config)
            check_room(model, empty)
            corrections.follow_files(model, config, empty)
    return config


def read_config(model: str, *, any_family: bool = False, trust_remote_code: bool = False) -> PretrainedConfig:
    """The config of a folder or hub id of anybody's, which is looked at before transformers reads it.

    No code beside it runs unless it is trusted.

    Raises:
        ConfigError: no such folder, no config, or no weights beside it; weights that are pickles; sizes no model has.
        UnsupportedModel: a family nobody described, unless any is wanted.
    """
    check_folder(model, "model", "config.json")
    model_folder.refuse_adapter(model, "model")
    with wrap_errors(f"model: cannot read config.json of {model}", advice="Correct it, or name another model."):
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
    """Refuse a config of a model that the weight files beside it cannot hold.

    Args:
        empty: the model of the config, without memory behind its weights.

    Raises:
        ConfigError: says how many parameters both have.
    """
    model_folder.check_sizes(sum(parameter.numel() for parameter in empty.parameters()), model, "model")


def check_generation(model: str) -> GenerationConfig | None:
    """The generation settings beside a model, None where there are none.

    Raises:
        ConfigError: some that transformers cannot read, which would fail to load the model, or be lost in silence.
    """
    if model_folder.find_file(model, GENERATION_CONFIG, "model") is None:
        return None
    advice = f"Correct {GENERATION_CONFIG}, or take it out."
    with wrap_errors(f"model: the generation settings of {model} do not hold", advice=advice):
        return GenerationConfig.from_pretrained(model)


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


def _quantised_weight(folder: Path) -> str:
    """The type of weights that no config declares and that are no floating-point numbers of 16 bits or more."""
    if not folder.is_dir():
        return ""
    for name, kind in model_folder.read_headers(folder, "model").types.items():
        if name.endswith(WEIGHT_NAMES) and kind not in model_folder.FLOATS:
            return f"{name} is stored as {kind}"
    return ""


def needs_own_code(config: PretrainedConfig) -> bool:
    """Whether a model's class is in a file beside its weights, because transformers has none of that name."""
    named = (config.architectures or [""])[0]
    return bool(getattr(config, "auto_map", None)) and not hasattr(transformers, named)


def check_folder(name: str, key: str, config_file: str) -> None:
    """Refuse what is neither a complete folder nor could be a hub id, and weights that could run code.

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
            raise ConfigError(f"{key}: {name} has no {config_file}. Name a Hugging Face folder or a hub id.")
        model_folder.check_files(folder, key)
        if config_file != model_folder.ADAPTER_CONFIG:
            model_folder.check_names(folder, key)
    elif (folder.parent / "config.yaml").is_file():  # by its form it could be a hub id, which takes a minute to miss
        raise ConfigError(f"{key}: the run in {folder.parent} has no {folder.name} yet. Finish it with --resume.")
    elif folder.is_absolute() or name.startswith(".") or name.count("/") != 1:
        raise ConfigError(f"{key}: there is no folder {name}. Name a Hugging Face folder or a hub id (owner/name).")


def load_model(model: str, adapter: str | None, device: torch.device) -> PreTrainedModel:
    """The dense model, with a user's LoRA adapter merged in; float32 on a CPU, the stored precision on a GPU.

    Raises:
        ConfigError: weights or an adapter that cannot be read or hold bad numbers, or an adapter of another base.
        UnsupportedModel: a model that cannot be cut.
    """
    config = load_config(model)
    if adapter is not None:
        load_config(model, adapter)  # for its checks
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
    """Refuse to go on where files that were downloaded just now contradict what was planned by the config alone.

    Raises:
        ConfigError: says what to do: they are here now, and count from the start the next time.
    """
    config = load_any_config(model)
    if (config.tie_word_embeddings, stored_dtype(config)) != (known.tie_word_embeddings, stored_dtype(known)):
        raise ConfigError(
            f"model: the weights of {model} were downloaded just now, and their precision, or whether head and"
            " embeddings are one tensor, is not as its config.json says. Start again: what the files hold counts then."
        )


def refuse_bad_weights(model: PreTrainedModel, name: str) -> None:
    """Refuse weights that are not finite: whatever is computed with them is not either, as the first loss would show.

    Raises:
        ConfigError: names the first of them.
    """
    if all_finite(model.parameters()):
        return
    bad = next(path for path, parameter in model.named_parameters() if not all_finite([parameter]))
    raise ConfigError(
        f"model: `{bad}` of {name} holds NaN or infinite numbers, so nothing can be tuned or decided with it. Name a"
        " model whose weights are finite, such as an earlier checkpoint of it."
    )


def load_tokenizer(model: str, config: PretrainedConfig, adapter: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer beside a model, or beside the adapter that was trained with one; it pads with a token that exists.

    Args:
        config: the model's, with the adapter merged in.

    Raises:
        ConfigError: there is none.
    """
    if adapter is not None and model_folder.find_file(adapter, TOKENIZER_CONFIG, "model.adapter"):
        corrections.remark(
            f"{adapter}: the tokenizer and the chat template beside the adapter are used, not its base's."
        )
        model = adapter
    folder = Path(model)
    if folder.is_dir() and not any(path.name.startswith(("tokenizer", "vocab")) for path in folder.iterdir()):
        raise ConfigError(
            f"model: {model} holds no tokenizer (tokenizer.json or tokenizer.model). Put the files of its tokenizer"
            " beside the weights; whatever the model was tuned from has them."
        )
    with wrap_errors(f"model: cannot load the tokenizer of {model}", advice=NEWER):
        tokenizer = AutoTokenizer.from_pretrained(model, config=config, trust_remote_code=False)
        tokenizer("a b")  # some settings are first looked at here
    corrections.replace_padding(model, tokenizer, vocabulary(config))
    return tokenizer


def vocabulary(config: PretrainedConfig) -> int | None:
    """How many embeddings a model has by its config; None where a stranger's says nothing of it."""
    return getattr(config.get_text_config(), "vocab_size", None)


def skeleton(config: PretrainedConfig, generation: str | None = None) -> PreTrainedModel:
    """The model without memory behind its weights: shapes only.

    Args:
        generation: folder or hub id whose generation settings the model gets, where it has some.
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

    Unlike `model.to(dtype)` it leaves buffers alone: the frequencies of RoPE stay in float32, as in a loaded model.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def stored_dtype(config: PretrainedConfig) -> torch.dtype:
    """The precision the weights are stored in, which the result is stored in too."""
    return config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
