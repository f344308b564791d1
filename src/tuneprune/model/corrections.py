"""What a model's config says and this program or the files beside it do not bear out: corrected, and said once."""

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
"""What a config may ask for: present wherever PyTorch is, and able to take heads and experts of any width."""
OUTPUTS = {"output_attentions": False, "return_dict": True}
"""What a model has to give out here, whatever its config says."""
WRAPPERS = {
    "_orig_mod.": "torch.compile (its _orig_mod)",
    "module.": "DataParallel (its module)",
    "base_model.model.": "PEFT (merge_and_unload())",
}
"""What wrapped a model whose tensors are named so, and the model inside."""
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def output_settings(model: str, raw: Mapping[str, Any]) -> dict[str, bool]:
    """What a config is read with in place of what it says of outputs.

    Args:
        raw: what config.json says.
    """
    for name, value in OUTPUTS.items():
        if raw.get(name, value) != value:
            remark(
                f"{model}: config.json says {name}={raw[name]}, with which nothing is computed here; it is left out."
            )
    return OUTPUTS


def replace_missing(model: str, config: Any) -> None:  # noqa: ANN401  (every family has its own config class)
    """Take out of a config what keeps a model from being built: an attention of another package, padding no row has."""
    for part, (setting, known) in IMPLEMENTATIONS.items():
        asked = getattr(config, setting, None)
        if asked not in known:
            setattr(config, setting, None)
            remark(
                f"{model}: config.json asks for the {part} {short_name(asked)}, which is not used here; PyTorch's own"
                " takes its place, and the result asks for none."
            )
    padding, rows = (getattr(config, name, None) for name in ("pad_token_id", "vocab_size"))
    if isinstance(padding, int) and isinstance(rows, int) and not -rows <= padding < rows:
        config.pad_token_id = None
        remark(f"{model}: config.json says pad_token_id={padding}, but there are {rows} embeddings; it is left out.")


def replace_padding(model: str, tokenizer: PreTrainedTokenizerBase, rows: int | None) -> None:
    """Let a tokenizer pad with a token that the model has, where its own was added after the embeddings were made.

    What stands in padded places is masked or ignored everywhere, so any token serves.

    Args:
        rows: the embeddings that there are; None where nobody knows.
    """
    padding = tokenizer.pad_token_id
    if rows is None or not isinstance(padding, int) or padding < rows:
        return
    known = (tokenizer.eos_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id, 0)
    other = next(token for token in known if isinstance(token, int) and token < rows)
    old, tokenizer.pad_token = tokenizer.pad_token, tokenizer.convert_ids_to_tokens(other)
    remark(
        f"{model}: the padding token {old} is number {padding}, but there are {rows} embeddings; rows are padded with"
        f" {tokenizer.pad_token}, which is masked as well, and so says the result's tokenizer."
    )


def replace_stops(model: str, loaded: PreTrainedModel) -> None:
    """Take tokens that the model does not have out of what it generates with, in place: padding and ends of texts."""
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
            f"{model}: its generation settings say {name}={said}, but there are {rows} embeddings; others are left out."
        )


def turn_cache_on(model: str, loaded: PreTrainedModel) -> None:
    """Let a model keep keys and values while it generates, in place, where training with checkpoints left that off."""
    holders: Any = (loaded.config, loaded.generation_config)
    off = [holder for holder in holders if getattr(holder, "use_cache", None) is False]
    for holder in off:
        holder.use_cache = True
    if off:
        remark(
            f"{model}: its settings say use_cache=False, as gradient checkpointing leaves it, with which generation is"
            " slow; the result's say True."
        )


def follow_files(model: str, config: PretrainedConfig, skeleton: PreTrainedModel) -> None:
    """Let the weight files decide on the precision, and on whether the head is the embeddings, in place.

    Nothing changes where the files are not on this machine yet.

    Args:
        skeleton: the model of this config without memory behind its weights.

    Raises:
        ConfigError: weights that are missing or of other shapes; only one of head and embeddings is there, and the
            config says that they are two tensors.
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
            f" hold two different tensors ({ends[1]}, {ends[0]}): they are taken for two."
        )
    if not config.tie_word_embeddings and len(held) == 1:
        missing = next(name for name in ends if name not in held)
        raise ConfigError(
            f"model: config.json of {model} says that head and embeddings are two tensors (tie_word_embeddings: false),"
            f" but the files hold only one, {held[0]}, and not {missing}. If they are meant to be one, set"
            " tie_word_embeddings to true there; if not, the model was saved without a part of it: save the whole"
            " causal language model again."
        )


def _refuse_misfits(model: str, skeleton: PreTrainedModel, checkpoint: Checkpoint, ends: list[str]) -> None:
    """Refuse files that lack weights of the model, head and embeddings aside, or have them in other shapes.

    Raises:
        ConfigError: names one.
    """
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
    """What is said of files that lack weights.

    Args:
        stored: names in the files.
    """
    wrapper = next((text for name in stored for prefix, text in WRAPPERS.items() if name.startswith(prefix)), None)
    if wrapper is not None:
        return ConfigError(
            f"model: the tensors of {model} are named as {wrapper.partition(' ')[0]} wraps them, and so"
            f" `{min(missing)}` is not found. Save the model inside, of {wrapper}, and name that."
        )
    return ConfigError(
        f"model: the weights of {model} are incomplete: {len(missing)} are missing, such as {min(missing)}. Download"
        " the missing files, or save the whole causal language model again."
    )


def _follow_precision(model: str, config: PretrainedConfig, checkpoint: Checkpoint) -> None:
    """The precision of most of the parameters, which the result is stored in."""
    counts = {DTYPES[kind]: count for kind, count in checkpoint.types().items() if kind in DTYPES}
    if not counts:
        return
    most = max(counts, key=lambda dtype: counts[dtype])
    if isinstance(config.dtype, torch.dtype) and config.dtype != most:
        remark(
            f"{model}: config.json says {short_name(config.dtype)}, but the weights are stored in {short_name(most)}:"
            " the files count."
        )
    if len(counts) > 1:
        shares = ", ".join(f"{count:,} in {short_name(dtype)}" for dtype, count in counts.items())
        remark(f"{model}: parameters are stored in several precisions ({shares}); the result is in {short_name(most)}.")
    config.dtype = most


def short_name(value: object) -> str:
    """A precision or a name as a sentence has it."""
    return str(value).removeprefix("torch.")
