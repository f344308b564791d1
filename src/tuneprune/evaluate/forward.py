"""Forward passes for evaluation: batches of similar length, log-probabilities."""

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tuneprune.model.inference import device_of

MAX_LOGITS = 2**27
"""Logits of one batch: 512 MiB in float32. With a vocabulary of 150k more would fill a GPU."""


@dataclass(frozen=True)
class Scored:
    """Tokens that are scored from position `start` (at least 1) on, each predicted from all before it."""

    ids: tuple[int, ...]
    start: int


def vocabulary_size(model: nn.Module) -> int:
    """The number of logits of a position."""
    causal: Any = model
    return causal.get_output_embeddings().weight.shape[0]


def batches(lengths: Sequence[int], batch_size: int, max_tokens: int) -> Iterator[list[int]]:
    """Indices into `lengths`, longest first, in batches of similar length.

    Args:
        max_tokens: a batch holds no more than this many tokens, padding included, unless it is a single item.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    while order:
        size = max(1, min(batch_size, max_tokens // max(1, lengths[order[0]])))
        yield order[:size]
        order = order[size:]


def score_tokens(model: nn.Module, sequences: Sequence[Scored], pad_id: int) -> list[float]:
    """The sum of the log-probabilities (nats) of the scored tokens of every sequence, as one batch."""
    length = max(len(sequence.ids) for sequence in sequences)
    padded = [[*sequence.ids, *[pad_id] * (length - len(sequence.ids))] for sequence in sequences]
    ids = torch.tensor(padded, device=device_of(model))
    first = min(sequence.start for sequence in sequences)
    # Padding on the right needs no mask: a causal model never looks there from a real token.
    log_probabilities = logits_from(model, ids, first - 1)[:, :-1].float().log_softmax(-1)
    picked = log_probabilities.gather(-1, ids[:, first:, None]).squeeze(-1).double()
    rows = zip(picked, sequences, strict=True)
    return [float(row[sequence.start - first : len(sequence.ids) - first].sum()) for row, sequence in rows]


def logits_from(model: nn.Module, ids: Tensor, position: int) -> Tensor:
    """The logits at `position` and after it, [rows, length - position, vocabulary]."""
    wanted = ids.shape[1] - position
    return model(input_ids=ids, use_cache=False, **last_logits(model, wanted)).logits[:, -wanted:]


def last_logits(model: nn.Module, wanted: int) -> dict[str, int]:
    """Arguments that keep a model from making logits before the last `wanted` positions, where it knows them."""
    known = inspect.signature(model.forward).parameters
    return {"logits_to_keep": wanted} if "logits_to_keep" in known else {}
