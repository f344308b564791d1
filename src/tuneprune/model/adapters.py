"""A user's LoRA adapter: checked against its base model before any weights are read, and merged into it."""

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from tuneprune.errors import ConfigError, TunePruneError, first_line, wrap_errors
from tuneprune.system.timeout import time_limit

if TYPE_CHECKING:  # costs seconds to import, and few runs have an adapter
    from peft import LoraConfig, PeftModel

MERGED_ONLY = "Only LoRA (also DoRA and rsLoRA) for causal language models is merged here"
PATIENCE_S = 120.0
"""Time limit in seconds for matching a pattern of modules; the largest models take several."""
UNMERGED = ("kasa_config", "monteclora_config", "alora_invocation_tokens", "arrow_config")
"""Settings of LoRA variants that need more than two matrices a linear: the weight's SVD, samples, or the text."""
Shapes = Mapping[str, tuple[int, ...]]
REPEATABLE_STARTS = ("gaussian", "eva", "orthogonal", "mica", "pissa", "olora")
"""Initialisations (init_lora_weights) that keep the base, or change it in the same way whenever peft loads them."""
CONVERTIBLE_STARTS = ("pissa", "corda", "lora_ga")
"""Prefixes of others that peft can convert to plain LoRA where it has the changed base."""


def merged_config(adapter: str, skeleton: PreTrainedModel) -> PretrainedConfig:
    """The config of the base with the adapter merged in: embeddings that it trains separately are no longer tied.

    Args:
        skeleton: the base on the meta device; it is changed.

    Raises:
        ConfigError: an adapter that cannot be read, is not LoRA, or was made for another base.
    """
    options = _options(adapter)
    with warnings.catch_warnings(action="ignore"):  # of renamed modules, and of embeddings, which are checked here
        return _merged_config(adapter, skeleton, options)


def merge(model: PreTrainedModel, adapter: str) -> PreTrainedModel:
    """The model with an adapter merged into its weights; `merged_config` has checked that it fits."""
    from peft import PeftModel

    with warnings.catch_warnings(action="ignore"):
        _resize(adapter, model, _stored(adapter))
        return PeftModel.from_pretrained(model, adapter).merge_and_unload()


def _merged_config(adapter: str, skeleton: PreTrainedModel, options: "LoraConfig") -> PretrainedConfig:
    from peft import get_peft_model, get_peft_model_state_dict

    try:
        stored = _stored(adapter)
        _refuse_rank(adapter, options, stored)
        _resize(adapter, skeleton, stored)
        with time_limit(PATIENCE_S, _other_base(adapter, options, "its target_modules take minutes to match")):
            wrapped = get_peft_model(skeleton, options)
        _refuse_shared(adapter, skeleton, wrapped, options)
        wanted = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
        found = _difference(stored, _shapes(wanted), _shapes(dict(wrapped.named_parameters(remove_duplicate=False))))
        if found:
            raise _other_base(adapter, options, found)
        merged: Any = wrapped.merge_and_unload()
    except TunePruneError:
        raise
    except Exception as error:
        raise _other_base(adapter, options, first_line(error)) from error
    if merged.get_input_embeddings().weight is not merged.get_output_embeddings().weight:
        merged.config.tie_word_embeddings = False
    return merged.config


def _stored(adapter: str) -> Shapes:
    """The shapes of an adapter's weights by name, without peft's copies of fully trained embeddings."""
    from peft.utils import load_peft_weights

    shapes = _shapes(load_peft_weights(adapter, device="cpu"))
    copies = (".modules_to_save.weight", ".original_module.weight")
    return {
        name: shape
        for name, shape in shapes.items()
        if not any(name.endswith(copy) and f"{name.removesuffix(copy)}.weight" in shapes for copy in copies)
    }


def _resize(adapter: str, model: PreTrainedModel, stored: Shapes) -> None:
    """Resize the embeddings, in place, to those of an adapter that was trained with another vocabulary."""
    ends: Any = (model.get_input_embeddings(), model.get_output_embeddings())
    names = [name for name, module in model.named_modules() if module in ends]
    rows = {name: _rows(stored, name) for name in names}
    old, found = len(ends[0].weight), {count for count in rows.values() if count}
    if found <= {old}:
        return
    if len(found) > 1 or (None in rows.values() and not model.config.tie_word_embeddings):
        listed = ", ".join(f"{name}: {count or 'none'}" for name, count in rows.items())
        raise ConfigError(
            f"model.adapter: {adapter} was trained with another vocabulary than the {old} tokens of its base, but does"
            f" not contain both the embeddings and the head ({listed}). Save it with save_embedding_layers=True, or"
            " merge it with peft where it was trained and name the result."
        )
    model.resize_token_embeddings(found.pop(), mean_resizing=False)


def _rows(stored: Shapes, name: str) -> int | None:
    """The number of rows of a module's full weight in an adapter; None if it is not there."""
    for ending in ("weight", "base_layer.weight"):
        shape = stored.get(f"base_model.model.{name}.{ending}")
        if shape is not None:
            return shape[0]
    return None


def _shapes(tensors: Mapping[str, Tensor]) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _options(adapter: str) -> "LoraConfig":
    """The adapter's settings, without an initialisation that would read weights."""
    from peft import LoraConfig, PeftConfig

    with wrap_errors(f"model.adapter: cannot read the settings of {adapter}"):
        options = PeftConfig.from_pretrained(adapter)
    kind, task = (str(getattr(value, "value", value)) for value in (options.peft_type, options.task_type))
    if not isinstance(options, LoraConfig) or kind != "LORA":
        raise ConfigError(
            f"model.adapter: {adapter} is an adapter of type {kind}. {MERGED_ONLY}; name a LoRA adapter, or merge yours"
            " with peft and name the result as model.base."
        )
    if task not in ("CAUSAL_LM", "None"):
        raise ConfigError(f"model.adapter: {adapter} was made for the task {task}. {MERGED_ONLY}; name one of those.")
    special = [name for name in UNMERGED if getattr(options, name, None)]
    if special:
        raise ConfigError(
            f"model.adapter: {adapter} sets {special[0]}, a kind of LoRA that is not merged here. {MERGED_ONLY}; name"
            " one of those."
        )
    _refuse_start(adapter, str(options.init_lora_weights))
    options.init_lora_weights = False
    return options


def _refuse_start(adapter: str, start: str) -> None:
    """Refuse an adapter whose initialisation changed the base randomly or from data: merging cannot repeat that."""
    if start in ("True", "False", "None") or start.lower() in REPEATABLE_STARTS:
        return
    convertible = start.lower().startswith(CONVERTIBLE_STARTS)
    plain = "save it as plain LoRA (save_pretrained with path_initial_model_for_weight_conversion), or "
    raise ConfigError(
        f"model.adapter: {adapter} was initialised with init_lora_weights: {start}, whose changes to the base weights"
        f" cannot be repeated from its files. Where it was trained, {plain if convertible else ''}merge it with peft"
        " and name the result as model.base."
    )


def _refuse_shared(adapter: str, skeleton: PreTrainedModel, wrapped: "PeftModel", options: "LoraConfig") -> None:
    """Refuse LoRA on embeddings that are also the head, because merging it would change both."""
    if not skeleton.config.tie_word_embeddings or getattr(options, "ensure_weight_tying", False):
        return
    ends = (wrapped.get_input_embeddings(), wrapped.get_output_embeddings())
    if any(hasattr(end, "base_layer") and hasattr(end, "lora_A") for end in ends):
        raise ConfigError(
            f"model.adapter: {adapter} has LoRA on the embeddings or the head, which are one tensor in this model, so"
            " merging it would change both. Train it without them, or with modules_to_save instead."
        )


def _refuse_rank(adapter: str, options: "LoraConfig", stored: Shapes) -> None:
    """Refuse a rank larger than any of the adapter's weights, before peft allocates memory for it."""
    largest = max((size for shape in stored.values() for size in shape), default=0)
    rank = max(options.r, *(options.rank_pattern or {}).values(), 0)
    if rank > largest:
        raise _other_base(adapter, options, f"its settings say rank {rank}, which its weights do not have")


def _difference(stored: Shapes, wanted: Shapes, whole: Shapes) -> str:
    """Why an adapter does not fit its base; empty if it fits."""
    for name, shape in stored.items():
        fits = wanted.get(name, whole.get(name))
        if fits is None:
            return f"the base has no place for {name}"
        if fits != shape:
            return f"{name} is {_size(shape)}, but the base needs {_size(fits)}"
    missing = sorted(wanted.keys() - stored.keys())
    return f"the adapter lacks {len(missing)} weights, such as {missing[0]}" if missing else ""


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _other_base(adapter: str, options: "LoraConfig", found: str) -> ConfigError:
    own = options.base_model_name_or_path
    return ConfigError(
        f"model.adapter: {adapter} does not belong to model.base: {found.rstrip('.')}. Name the base that it was"
        f" trained on{f' ({own})' if own else ''}, or an adapter of this base."
    )
