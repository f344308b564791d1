"""A program for a fresh process: loads a model, prefills and decodes, and measures the memory.

Usage: python run_memory.py FOLDER RESULT TRUST DEVICE DTYPE PROMPT NEW SIZE..., where RESULT is the JSON file to
write, TRUST 1 where the folder needs its own code, and PROMPT and NEW count the tokens of a row. The peak of a process
never falls, so batch sizes come in ascending order.
"""

import inspect
import json
import resource
import sys
from pathlib import Path
from typing import Any, TypeAlias

Torch: TypeAlias = Any
"""A model, tokenizer or tensor; torch and transformers are imported late."""


def peak_bytes(device: str) -> int:
    """Peak memory so far: of allocations on a GPU, else of the resident set."""
    import torch

    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count what the parent process held when it started this one
        line = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024


def generate(model: Torch, prompt: Torch, new_tokens: int) -> Torch:
    """The key/value cache after a prefill and `new_tokens` greedy steps."""
    import torch

    known = inspect.signature(model.forward).parameters
    options = {"logits_to_keep": 1} if "logits_to_keep" in known else {}
    ids, cache = prompt, None
    with torch.no_grad():
        for _ in range(new_tokens + 1):
            output = model(input_ids=ids, past_key_values=cache, use_cache=True, **options)
            ids, cache = output.logits[:, -1:].argmax(-1), output.past_key_values
    return cache


def cache_bytes_per_token(cache: Torch, rows: int) -> int:
    """Bytes of keys and values of one token in all layers; a layer with a window holds only its newest ones."""
    tensors = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
    return sum(tensor.numel() * tensor.element_size() // (rows * tensor.shape[-2]) for tensor in tensors)


def main(folder: str, result_file: str, trust: str, device: str, dtype: str, *counts: str) -> None:
    """Load, generate at every batch size, and write the result."""
    import torch
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    _ = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]  # imports all that the family needs
    torch.zeros(1, device=device)
    libraries = peak_bytes(device)
    options: dict[str, Any] = {
        "dtype": getattr(torch, dtype),
        "trust_remote_code": trust == "1",
        "use_safetensors": True,
    }
    model: Any = AutoModelForCausalLM.from_pretrained(folder, **options)
    model = model.to(device).eval()
    result: dict[str, Any] = {
        "weight_bytes": sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()),
        "libraries_bytes": libraries,
        "loaded_bytes": peak_bytes(device),
        "peaks": [],
    }
    cache = None
    prompt, new, *sizes = map(int, counts)
    for rows in sizes:
        ids = torch.zeros(rows, prompt, dtype=torch.long, device=device)
        cache = generate(model, ids, new)
        result["peaks"].append({"batch_size": rows, "bytes": peak_bytes(device)})
        result["cache_bytes_per_token"] = cache_bytes_per_token(cache, rows)
    Path(result_file).write_text(json.dumps(result), encoding="utf8")


if __name__ == "__main__":
    main(*sys.argv[1:])
