"""A program for a fresh process: what mlx-lm says about a probe.

Usage: python run_probe.py FOLDER RESULT PROBE, where PROBE and RESULT are safetensors files: `input_ids` [rows, length]
and `prompt_ids` [length] in, `logits` [rows, length, vocabulary] and `greedy_ids` out. Everything is computed in
float32 on the CPU.
"""

import sys
from pathlib import Path
from typing import Any


def main(folder: str, result_file: str, probe_file: str, new_tokens: str) -> None:
    """Load, compute logits, generate with the key/value cache, and write both."""
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache
    from mlx_lm.utils import load_model

    mx.set_default_device(mx.cpu)
    model = load_model(Path(folder))[0]
    model.set_dtype(mx.float32)
    probe: Any = mx.load(probe_file)
    logits = mx.concatenate([model(row[None]) for row in probe["input_ids"]])
    cache = make_prompt_cache(model)
    ids: list[int] = []
    step = probe["prompt_ids"][None]
    for _ in range(int(new_tokens)):
        chosen: Any = mx.argmax(model(step, cache=cache)[0, -1])
        ids.append(chosen.item())
        step = chosen.reshape(1, 1)
    mx.save_safetensors(result_file, {"logits": logits, "greedy_ids": mx.array(ids)})


if __name__ == "__main__":
    main(*sys.argv[1:])
