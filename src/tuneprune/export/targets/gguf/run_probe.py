"""A program for a fresh process: runs a GGUF file in llama.cpp on a probe.

Usage: python run_probe.py FILE RESULT PROBE LOGITS SETTINGS, where PROBE is a safetensors file with `input_ids` and
`prompt_ids`, and SETTINGS is JSON: `context` (tokens to cut these to), `new_tokens`, `texts` to tokenize and `exact`
(true for a key/value cache in float32). It writes LOGITS, a numpy file, and RESULT, a JSON file with `greedy_ids`,
`engine` and `tokens` (of every text, as llama.cpp gives them by default, and `bare`, without special tokens at the
ends).
"""

import ctypes
import json
import os
import sys
from pathlib import Path
from typing import Any, TypeAlias

Llama: TypeAlias = Any
"""A class of the optional package llama_cpp, or one of its callbacks."""
GGML_TYPE_F32 = 0
GGML_LOG_LEVEL_ERROR = 4


def listen(errors: list[str]) -> Llama:
    """Collect the error messages of llama.cpp; the callback that is returned has to outlive the model."""
    import llama_cpp

    @llama_cpp.llama_log_callback
    def log(level: int, text: bytes, _: object) -> None:
        if level == GGML_LOG_LEVEL_ERROR:
            errors.append(text.decode(errors="replace").strip())

    llama_cpp.llama_log_set(log, ctypes.c_void_p(0))
    return log


def load(file: str, length: int, *, exact: bool) -> Llama:
    """The model, ready to compute `length` tokens."""
    import llama_cpp

    cache: dict[str, Any] = {"type_k": GGML_TYPE_F32, "type_v": GGML_TYPE_F32} if exact else {}
    return llama_cpp.Llama(
        file, n_ctx=length, n_batch=length, n_threads=1, n_gpu_layers=0, logits_all=True, verbose=False, **cache
    )


def main(file: str, result_file: str, probe_file: str, logits_file: str, settings: str) -> None:
    """Load, compute, generate, tokenize."""
    os.environ["GGML_NO_BACKTRACE"] = "1"  # it takes seconds, and its lines hide the error
    import llama_cpp
    import numpy as np
    from safetensors import safe_open

    with safe_open(probe_file, framework="np") as stored:
        rows, prompt = stored.get_tensor("input_ids"), stored.get_tensor("prompt_ids")
    asked: dict[str, Any] = json.loads(settings)
    rows, prompt = rows[:, : asked["context"]], prompt[: asked["context"]]
    length = max(rows.shape[1], len(prompt) + asked["new_tokens"])
    errors: list[str] = []
    listener = listen(errors)
    try:
        model = load(file, length, exact=asked["exact"])
    except ValueError as error:
        sys.exit(next((line for line in errors if "error" in line), str(error)))

    def answer(tokens: list[int]) -> np.ndarray:
        model.eval(tokens)
        return model.scores[model.n_tokens - len(tokens) : model.n_tokens].copy()

    logits = []
    for row in rows:
        model.reset()
        logits.append(answer([int(token) for token in row]))
    model.reset()
    last, greedy = answer([int(token) for token in prompt])[-1], []
    for _ in range(asked["new_tokens"]):
        greedy.append(int(last.argmax()))
        last = answer(greedy[-1:])[-1]
    tokens = [
        {kind: model.tokenize(text.encode(), add_bos=kind == "ids", special=True) for kind in ("ids", "bare")}
        for text in asked["texts"]
    ]
    np.save(logits_file, np.stack(logits).astype(np.float32))
    found = {"greedy_ids": greedy, "tokens": tokens, "engine": f"llama-cpp-python {llama_cpp.__version__}"}
    Path(result_file).write_text(json.dumps(found), encoding="utf8")
    model.close()
    del listener


if __name__ == "__main__":
    main(*sys.argv[1:])
