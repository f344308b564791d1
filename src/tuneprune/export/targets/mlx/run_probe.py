"""A program for a fresh process: runs a folder in mlx-lm on a probe.

Usage: python run_probe.py FOLDER RESULT PROBE LOGITS NEW, where PROBE is a safetensors file with `input_ids` [rows,
length] and `prompt_ids` [length]. It writes LOGITS, a safetensors file with `logits` [rows, length, vocabulary], and
RESULT, a JSON file with `greedy_ids`, NEW tokens after the prompt. Everything is computed in float32 on the CPU.
"""

import json
import sys
from pathlib import Path
from typing import Any


def main(folder: str, result_file: str, probe_file: str, logits_file: str, new_tokens: str) -> None:
    """Load, compute logits, generate with the key/value cache, and write both."""
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache
    from mlx_lm.utils import load_model

    mx.set_default_device(mx.cpu)
    model = load_model(Path(folder))[0]
    model.set_dtype(mx.float32)
    probe: Any = mx.load(probe_file)
    mx.save_safetensors(logits_file, {"logits": mx.concatenate([model(row[None]) for row in probe["input_ids"]])})
    cache = make_prompt_cache(model)
    ids: list[int] = []
    step = probe["prompt_ids"][None]
    for _ in range(int(new_tokens)):
        chosen: Any = mx.argmax(model(step, cache=cache)[0, -1])
        ids.append(chosen.item())
        step = chosen.reshape(1, 1)
    Path(result_file).write_text(json.dumps({"greedy_ids": ids}), encoding="utf8")


if __name__ == "__main__":
    main(*sys.argv[1:])
