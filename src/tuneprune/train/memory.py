"""Peak memory of this process, on the device that trains."""

import resource
import sys

import torch


def peak_memory(device: torch.device) -> int:
    """Bytes: the largest allocation on a GPU, the largest resident set on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024
