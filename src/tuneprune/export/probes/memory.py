"""The memory that a model needs, measured in a fresh process: the peak of this one would be that of the whole run."""

from collections.abc import Sequence
from typing import Any

import torch

from tuneprune.export.probes import run_memory
from tuneprune.export.probes.fresh_process import run_fresh


def memory_use(
    model: str,
    *,
    needs_remote_code: bool,
    device: torch.device,
    dtype: torch.dtype,
    prompt_tokens: int,
    new_tokens: int,
    batch_sizes: Sequence[int],
) -> dict[str, Any]:
    """Bytes that loading, prefill and greedy decoding of a model (folder or hub id) take in a fresh process.

    Returns `weight_bytes`, `cache_bytes_per_token` (keys and values of one token of one row, all layers),
    `libraries_bytes` (the peak before anything is loaded), `loaded_bytes` (the peak of loading) and `peaks`
    ([{batch_size, bytes}, ...], ascending, each with all before it): of the resident set on a CPU, of allocations on a
    GPU.

    Raises:
        TunePruneError: the model does not load or does not run there.
    """
    precision = str(dtype).removeprefix("torch.")
    lengths = [str(prompt_tokens), str(new_tokens)]
    sizes = [str(size) for size in sorted(batch_sizes)]
    return run_fresh(run_memory, model, [str(int(needs_remote_code)), str(device), precision, *lengths, *sizes])
