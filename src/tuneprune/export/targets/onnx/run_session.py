"""A program for a fresh process: runs an exported graph with onnxruntime alone and compares it with a probe.

Usage: python run_session.py FOLDER RESULT PROBE, where PROBE is a safetensors file with `input_ids`, `logits` and
`prompt_ids`, and RESULT the JSON file to write.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

NEW_TOKENS = 32
PADDING = 3


class Decoder:
    """The graph with the cache of the tokens it has seen."""

    def __init__(self, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        # by default the runtime uses all cores of the machine, even those that other programs were given
        options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS") or 0)
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.outputs = [output.name for output in self.session.get_outputs()]
        self.cache: dict[str, Any] = {}
        self.mask: Any = None

    def start(self, mask: np.ndarray) -> None:
        """Forget the tokens; `mask` [batch, length] is 0 where the next ones are padding."""
        kinds = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
        self.mask = mask[:, :0]
        self.cache = {
            value.name: np.zeros((len(mask), value.shape[1], 0, value.shape[3]), kinds[value.type])
            for value in self.session.get_inputs()
            if value.name.startswith("past_key_values.")
        }

    def step(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Logits [batch, length, vocabulary] of the next tokens; the cache holds them afterwards."""
        self.mask = np.concatenate([self.mask, mask], axis=1)
        positions = np.maximum(self.mask.cumsum(1) - 1, 0)[:, -ids.shape[1] :]
        feed = {"input_ids": ids, "attention_mask": self.mask, "position_ids": positions, **self.cache}
        found: dict[str, Any] = dict(zip(self.outputs, self.session.run(None, feed), strict=True))
        logits = found.pop("logits")
        self.cache = {name.replace("present", "past_key_values"): value for name, value in found.items()}
        return logits.astype(np.float32)

    def greedy(self, logits: np.ndarray) -> list[list[int]]:
        """The continuation of every row after the `logits` of what the cache holds."""
        tokens = [logits[:, -1].argmax(-1)]
        for _ in range(NEW_TOKENS - 1):
            ids = tokens[-1][:, None]
            tokens.append(self.step(ids, np.ones_like(ids))[:, -1].argmax(-1))
        return np.stack(tokens, 1).tolist()


def difference(found: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    """Largest absolute difference, and that over the largest absolute value expected."""
    largest = float(np.abs(found - expected).max())
    return {"max_abs_diff": largest, "max_rel_diff": largest / float(np.abs(expected).max())}


def main(folder: str, result_file: str, probe_file: str) -> None:
    """Compute all at once, through the cache and next to a padded row, generate, and write the result."""
    import onnxruntime
    from safetensors.numpy import load_file

    probe = load_file(probe_file)
    ids, logits, prompt = probe["input_ids"], probe["logits"], probe["prompt_ids"][None]
    ones = np.ones_like(ids)
    decoder = Decoder(Path(folder, "model.onnx"))

    decoder.start(ones)
    whole = decoder.step(ids, ones)
    decoder.start(ones)
    half = ids.shape[1] // 2
    parts = [decoder.step(ids[:, :half], ones[:, :half])]
    parts += [decoder.step(ids[:, [at]], ones[:, [at]]) for at in range(half, ids.shape[1])]

    alone = np.ones_like(prompt)
    decoder.start(alone)
    greedy = decoder.greedy(decoder.step(prompt, alone))[0]
    length = min(prompt.shape[1] + PADDING, ids.shape[1])
    padding = length - prompt.shape[1]
    batch = np.stack([np.pad(prompt[0], (padding, 0), mode="edge"), ids[-1, :length]])
    mask = np.stack([np.arange(length) >= padding, np.ones(length, bool)]).astype(np.int64)
    decoder.start(mask)
    beside = decoder.step(batch, mask)
    result = {
        "engine": f"onnxruntime {onnxruntime.__version__}",
        "logits": difference(whole, logits) | {"tokens": ids.size},
        "cached_logits": difference(np.concatenate(parts, 1), logits),
        "batched_logits": difference(beside[1], logits[-1, :length]),
        "greedy_ids": greedy,
        "padded_greedy_ids": decoder.greedy(beside)[0],
    }
    Path(result_file).write_text(json.dumps(result), encoding="utf8")


if __name__ == "__main__":
    main(*sys.argv[1:])
