"""Memory of a tuning: its peak, and the trade of activations for a second forward."""

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel


def peak_memory(device: torch.device) -> int:
    """Bytes: the largest allocation on a GPU, the largest resident set on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024


@contextmanager
def activation_checkpointing(model: PreTrainedModel, is_on: bool) -> Iterator[None]:
    """Inside, where `is_on`, backward computes every block's activations again instead of keeping them.

    The non-reentrant kind: the reentrant one silently returns wrong gradients when gates differ between both forwards.
    """
    if not is_on:
        yield
        return
    name = (
        "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    )  # its name in older releases
    getattr(model, f"{name}_checkpointing_enable")({"use_reentrant": False})
    try:
        yield
    finally:
        getattr(model, f"{name}_checkpointing_disable")()
