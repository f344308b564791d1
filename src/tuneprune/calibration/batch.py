"""A batch of examples as tensors: which of its tokens count, and its rows."""

from collections.abc import Mapping
from copy import copy

import torch
from jaxtyping import Bool
from torch import Tensor

from tuneprune.calibration.labels import IGNORED

Batch = Mapping[str, Tensor]
"""`input_ids`, `position_ids` and `labels` of shape [rows, length]."""


def real_tokens(batch: Batch) -> Bool[Tensor, "rows length"]:
    """The tokens that count: prompts and answers, not the padding behind a row's last token with a label."""
    labelled = batch["labels"] != IGNORED
    return labelled.flip(1).cumsum(1).flip(1) > 0


def rows_of(batch: Batch) -> list[Batch]:
    """The rows of a batch as batches of one."""
    rows = range(len(batch["input_ids"]))
    return [derived(batch, **{name: tensor[row : row + 1] for name, tensor in batch.items()}) for row in rows]


def with_prompts(batch: Batch) -> Batch:
    """The batch with every real token as a label, those of prompts included; not the first of a document."""
    counts = real_tokens(batch) & (batch["position_ids"] > 0)
    return derived(batch, labels=torch.where(counts, batch["input_ids"], IGNORED))


def derived(batch: Batch, **tensors: Tensor) -> Batch:
    """The batch with some tensors replaced; if it knew which records it was made of, it still does."""
    made = dict(batch) if not isinstance(batch, dict) else copy(batch)
    made.update(tensors)
    return made
