"""Corrections of a config that contradicts the weight files or cannot be used here, each reported once."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from tuneprune import families
from tuneprune.compress.checkpoint import Checkpoint
from tuneprune.errors import ConfigError
from tuneprune.system.progress import remark

IMPLEMENTATIONS = {
    "attention": ("_attn_implementation", (None, "eager", "sdpa")),
    "experts": ("_experts_implementation", (None, "eager", "batched_mm", "grouped_mm")),
}
"""Implementations a config may ask for: they come with PyTorch, and support heads and experts of any width."""
OUTPUTS = {"output_attentions": False, "return_dict": True}
"""Output settings that are used whatever the config says."""
WRAPPERS = {
    "_orig_mod.": "torch.compile (its _orig_mod)",
    "module.": "DataParallel (its module)",
    "base_model.model.": "PEFT (merge_and_unload())",
}
"""Prefix of tensor names: what wrapped the model, and how to get the model inside."""
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def output_settings(model: str, raw: Mapping[str, Any]) -> dict[str, bool]:
    """The output settings to read a config with, instead of those in its config.json (`raw`)."""
    for name, value in OUTPUTS.items():
        if raw.get(name, value) != value:
            remark(f"{model}: config.json says {name}={raw[name]}, which is not supported here; it is ignored.")
    return OUTPUTS


def replace_missing(model: str, config: Any) -> None:  # noqa: ANN401  (every family has its own config class)
    """Remove settings with which no model can be built: attention of another package, padding without an embedding."""
    for part, (setting, known) in IMPLEMENTATIONS.items():
        asked = getattr(config, setting, None)
        if asked not in known:
            setattr(config, setting, None)
            remark(
                f"{model}: config.json asks for the {part} {short_name(asked)}, which is not used here; PyTorch's own"
                " is used instead, and the result asks for none."
            )
    padding, rows = (getattr(config, name, None) for name in ("pad_token_id", "vocab_size"))
    if isinstance(padding, int) and isinstance(rows, int) and not -rows <= padding < rows:
        config.pad_token_id = None
        remark(
            f"{model}: config.json says pad_token_id={padding}, but there are only {rows} embeddings; it is ignored."
        )


def replace_padding(model: str, tokenizer: PreTrainedTokenizerBase, rows: int | None) -> None:
    """Replace a padding token that was added after the embeddings were made by one that the model has.

    Padding is masked or ignored everywhere, so any token will do.

    Args:
        rows: the number of embeddings; None if it is unknown.
    """
    padding = tokenizer.pad_token_id
    if rows is None or not isinstance(padding, int) or padding < rows:
        return
    known = (tokenizer.eos_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id, 0)
    other = next(token for token in known if isinstance(token, int) and token < rows)
    old, tokenizer.pad_token = tokenizer.pad_token, tokenizer.convert_ids_to_tokens(other)
    remark(
        f"{model}: the padding token {old} is number {padding}, but there are only {rows} embeddings; rows are padded"
        f" with {tokenizer.pad_token}, which is masked as well, and so does the result's tokenizer."
    )


def replace_stops(model: str, loaded: PreTrainedModel) -> None:
    """Remove padding and end tokens that the model does not have from its generation settings, in place."""
    settings: Any = loaded.generation_config
    rows = getattr(loaded.config.get_text_config(), "vocab_size", None)
    if settings is None or rows is None:
        return
    for name in ("pad_token_id", "eos_token_id"):
        said = getattr(settings, name)
        tokens = said if isinstance(said, list) else [said]
        kept = [token for token in tokens if isinstance(token, int) and token < rows]
        if said is None or len(kept) == len(tokens):
            continue
        setattr(settings, name, (kept if isinstance(said, list) else kept[0]) if kept else None)
        remark(
            f"{model}: its generation settings say {name}={said}, but there are only {rows} embeddings; tokens beyond"
            " them are removed."
        )


def turn_cache_on(model: str, loaded: PreTrainedModel) -> None:
    """Turn on the key-value cache for generation, in place, where gradient checkpointing has left it off."""
    holders: Any = (loaded.config, loaded.generation_config)
    off = [holder for holder in holders if getattr(holder, "use_cache", None) is False]
    for holder in off:
        holder.use_cache = True
    if off:
        remark(
            f"{model}: its settings say use_cache=False, as gradient checkpointing leaves it, which makes generation"
            " slow; the result's settings say True."
        )


def follow_files(model: str, config: PretrainedConfig, skeleton: PreTrainedModel) -> None:
    """Set the precision, and whether the head is tied to the embeddings, to what the weight files say, in place.

    Nothing changes if the files are not on this machine yet.

    Args:
        skeleton: the model of this config on the meta device.

    Raises:
        ConfigError: weights that are missing or have other shapes; only one of head and embeddings is there, although
            the config says that they are two tensors.
    """
    checkpoint = Checkpoint.find(model, skeleton, local_files_only=True)
    if checkpoint is None:
        return
    architecture = families.describe_config(config)
    ends = [f"{module}.weight" for module in (architecture.embed, architecture.head)]
    _refuse_misfits(model, skeleton, checkpoint, ends)
    _follow_precision(model, config, checkpoint)
    held = [name for name in ends if checkpoint.holds(name)]
    if config.tie_word_embeddings and len(held) == 2 and not checkpoint.are_equal(*ends):
        config.tie_word_embeddings = False
        remark(
            f"{model}: config.json says that head and embeddings are one tensor (tie_word_embeddings), but the files"
            f" hold two different tensors ({ends[1]}, {ends[0]}): they are used as two."
        )
    if not config.tie_word_embeddings and len(held) == 1:
        missing = next(name for name in ends if name not in held)
        raise ConfigError(
            f"model: config.json of {model} says that head and embeddings are two tensors (tie_word_embeddings: false),"
            f" but the files hold only one, {held[0]}, and not {missing}. If they should be one, set"
            " tie_word_embeddings to true there; if not, the model was saved without a part of it: save the whole"
            " causal language model again."
        )


def _refuse_misfits(model: str, skeleton: PreTrainedModel, checkpoint: Checkpoint, ends: list[str]) -> None:
    """Refuse files that lack weights of the model other than head and embeddings, or have them in other shapes."""
    for name, stored, wanted in checkpoint.misfits():
        sizes = [" x ".join(map(str, shape)) or "one number" for shape in (stored, wanted)]
        raise ConfigError(
            f"model: `{name}` is {sizes[0]} in the files of {model}, but {sizes[1]} by its config.json. Correct"
            " config.json, or name a folder whose files belong together."
        )
    names = [name for name, _ in skeleton.named_parameters()]
    missing = [name for name in names if not checkpoint.holds(name) and name not in ends]
    if missing or not any(checkpoint.holds(name) for name in ends):
        raise incomplete_error(model, missing or ends, checkpoint.names())


def incomplete_error(model: str, missing: Collection[str], stored: Iterable[str]) -> ConfigError:
    """The error for files that lack weights, with the names of the tensors that are stored in them."""
    wrapper = next((text for name in stored for prefix, text in WRAPPERS.items() if name.startswith(prefix)), None)
    if wrapper is not None:
        return ConfigError(
            f"model: the tensors of {model} have the names that {wrapper.partition(' ')[0]} gives them, so"
            f" `{min(missing)}` is not found. Save the model inside {wrapper}, and name that."
        )
    return ConfigError(
        f"model: the weights of {model} are incomplete: {len(missing)} are missing, such as {min(missing)}. Download"
        " the missing files, or save the whole causal language model again."
    )


def _follow_precision(model: str, config: PretrainedConfig, checkpoint: Checkpoint) -> None:
    """Set the precision of most of the parameters, in which the result is stored."""
    counts = {DTYPES[kind]: count for kind, count in checkpoint.types().items() if kind in DTYPES}
    if not counts:
        return
    most = max(counts, key=lambda dtype: counts[dtype])
    if isinstance(config.dtype, torch.dtype) and config.dtype != most:
        remark(
            f"{model}: config.json says {short_name(config.dtype)}, but the weights are stored in {short_name(most)},"
            " which is used."
        )
    if len(counts) > 1:
        shares = ", ".join(f"{count:,} in {short_name(dtype)}" for dtype, count in counts.items())
        remark(f"{model}: parameters are stored in several precisions ({shares}); the result is in {short_name(most)}.")
    config.dtype = most


def short_name(value: object) -> str:
    """A precision or a name without `torch.`, for messages."""
    return str(value).removeprefix("torch.")
