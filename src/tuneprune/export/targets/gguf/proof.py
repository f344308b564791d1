"""The proof of a GGUF file: the answers of llama.cpp compared with those of the exported folder."""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tuneprune.compress.shape import Shape
from tuneprune.errors import TunePruneError
from tuneprune.export.reference import Reference
from tuneprune.export.targets.gguf import architectures, run_probe

EXACT, EXACT_BY_TABLE = 1e-3, 5e-3
"""Largest difference of logits over the largest logit that a float32 file may show.

llama.cpp reads GELU from a table in float16, so models with it differ by more than models with SiLU.
"""
DEVIATION = {"f16": 0.05, "bf16": 0.1, "q8_0": 0.2}
COARSE = 0.9
"""Largest root mean square of the differences over the standard deviation of the logits; unrelated logits have 1.4."""


def prove(file: Path, kind: str, reference: Reference, shape: Shape, *, with_tokens: bool) -> dict[str, Any]:
    """Compare the logits, the greedy continuation and the tokens of a file with the reference.

    Args:
        kind: the type of its weights, which decides how close is close enough.

    Returns:
        `engine`, `logits` {max_abs_diff, max_rel_diff, deviation, top1_agreement, tokens, tolerance}, `greedy_equal`
        (None where the file's context is too short for it) and `tokens` {equal, special_tokens_equal, of, differ}.

    Raises:
        TunePruneError: the file does not run, or computes something else.
    """
    host = architectures.choose(shape)
    context = architectures.context_length(host, shape.config)[0]
    found = _run(file, kind, reference, context, with_tokens=with_tokens)
    expected = reference.probe.logits[:, : found["logits"].shape[1]]
    logits = _compared(found["logits"], expected)
    measure, tolerance = _tolerance(kind, host)
    if not logits[measure] <= tolerance:
        raise TunePruneError(
            f"{file.name}: llama.cpp computes other logits than the exported folder: {measure} {logits[measure]:.3g},"
            f" of which {tolerance:g} is allowed. Nothing was written; please report it with the model's config."
        )
    needed = len(reference.probe.prompt_ids) + len(reference.greedy_ids)
    greedy = found["greedy_ids"] == reference.greedy_ids.tolist() if needed <= context else None
    proof: dict[str, Any] = {
        "engine": found["engine"],
        "logits": logits | {"tolerance": {measure: tolerance}},
        "greedy_equal": greedy,
    }
    if with_tokens:
        proof["tokens"] = _tokens(found["tokens"], reference)
    return proof


def _tolerance(kind: str, host: architectures.Host) -> tuple[str, float]:
    """What is compared, and how much of it is allowed."""
    if kind == "f32":
        return "max_rel_diff", EXACT_BY_TABLE if "gelu" in architectures.ACTIVATIONS[host.name] else EXACT
    return "deviation", DEVIATION.get(kind, COARSE)


def _run(file: Path, kind: str, reference: Reference, context: int, *, with_tokens: bool) -> dict[str, Any]:
    new_tokens = max(0, min(len(reference.greedy_ids), context - len(reference.probe.prompt_ids)))
    settings = {
        "context": context,
        "new_tokens": new_tokens,
        "texts": [spelling.text for spelling in reference.spellings] if with_tokens else [],
        "exact": kind == "f32",
    }
    with tempfile.TemporaryDirectory(prefix="tuneprune-gguf-") as scratch:
        logits = Path(scratch, "logits.npy")
        found = reference.probe.run(run_probe, file, str(logits), json.dumps(settings))
        return found | {"logits": torch.from_numpy(np.load(logits))}


def _compared(found: Tensor, expected: Tensor) -> dict[str, Any]:
    difference = (found - expected).abs()
    return {
        "max_abs_diff": difference.max().item(),
        "max_rel_diff": (difference.max() / expected.abs().max()).item(),
        "deviation": (difference.square().mean().sqrt() / expected.std()).item(),
        "top1_agreement": (found.argmax(-1) == expected.argmax(-1)).float().mean().item(),
        "tokens": expected.shape[0] * expected.shape[1],
    }


def _tokens(found: list[dict[str, list[int]]], reference: Reference) -> dict[str, Any]:
    """How many texts become the same tokens, and the others."""
    pairs = list(zip(reference.spellings, found, strict=True))
    differ = [spelling.text for spelling, said in pairs if list(spelling.bare) != said["bare"]]
    ends = all(list(spelling.ids) == said["ids"] for spelling, said in pairs if spelling.text not in differ)
    return {"equal": len(pairs) - len(differ), "of": len(pairs), "special_tokens_equal": ends, "differ": differ}
