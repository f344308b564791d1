"""What a model's config says and this program or the files beside it do not bear out: corrected, and said once."""

from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

from tuneprune import families
from tuneprune.compress.checkpoint import Checkpoint
from tuneprune.errors import ConfigError
from tuneprune.progress import remark

ATTENTIONS = (None, "eager", "sdpa")
"""What a config may ask for: present wherever PyTorch is, and able to take heads of any width."""
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def replace_missing(model: str, config: Any) -> None:  # noqa: ANN401  (every family has its own config class)
    """Take out of a config what keeps a model from being built: an attention of another package, padding no row has."""
    asked = getattr(config, "_attn_implementation", None)
    if asked not in ATTENTIONS:
        config._attn_implementation = None
        remark(
            f"{model}: config.json asks for the attention {printed(asked)}, which is not used here; PyTorch's own takes"
            " its place, and the result asks for none."
        )
    padding, rows = (getattr(config, name, None) for name in ("pad_token_id", "vocab_size"))
    if isinstance(padding, int) and isinstance(rows, int) and not -rows <= padding < rows:
        config.pad_token_id = None
        remark(f"{model}: config.json says pad_token_id={padding}, but there are {rows} embeddings; it is left out.")


def follow_files(model: str, config: PretrainedConfig, skeleton: PreTrainedModel) -> None:
    """Let the weight files decide on the precision, and on whether the head is the embeddings, in place.

    Nothing changes where the files are not on this machine yet.

    Args:
        skeleton: the model of this config without memory behind its weights.

    Raises:
        ConfigError: only one of head and embeddings is there, and the config says that they are two tensors.
    """
    checkpoint = Checkpoint.find(model, skeleton, local_files_only=True)
    if checkpoint is None:
        return
    _follow_precision(model, config, checkpoint)
    architecture = families.describe_config(config)
    ends = [f"{module}.weight" for module in (architecture.embed, architecture.head)]
    held = [name for name in ends if checkpoint.holds(name)]
    if config.tie_word_embeddings and len(held) == 2 and not checkpoint.are_equal(*ends):
        config.tie_word_embeddings = False
        remark(
            f"{model}: config.json says that head and embeddings are one tensor (tie_word_embeddings), but the files"
            f" hold two different tensors ({ends[1]}, {ends[0]}). Both are used, and the result's config says so."
        )
    if not config.tie_word_embeddings and len(held) == 1:
        missing = next(name for name in ends if name not in held)
        raise ConfigError(
            f"model: config.json of {model} says that head and embeddings are two tensors (tie_word_embeddings: false),"
            f" but the files hold only one, {held[0]}, and not {missing}. If they are meant to be one, set"
            " tie_word_embeddings to true there; if not, the model was saved without a part of it: save the whole"
            " causal language model again."
        )


def _follow_precision(model: str, config: PretrainedConfig, checkpoint: Checkpoint) -> None:
    """The precision of most of the parameters, which the result is stored in."""
    counts = {DTYPES[kind]: count for kind, count in checkpoint.types().items() if kind in DTYPES}
    if not counts:
        return
    most = max(counts, key=lambda dtype: counts[dtype])
    if isinstance(config.dtype, torch.dtype) and config.dtype != most:
        remark(
            f"{model}: config.json says {printed(config.dtype)}, but the weights are stored in {printed(most)}. The"
            " files count: the result is stored in that."
        )
    if len(counts) > 1:
        shares = ", ".join(f"{count:,} in {printed(dtype)}" for dtype, count in counts.items())
        remark(f"{model}: parameters are stored in several precisions ({shares}); the result is in {printed(most)}.")
    config.dtype = most


def printed(value: object) -> str:
    """A precision or a name as a sentence has it."""
    return str(value).removeprefix("torch.")
