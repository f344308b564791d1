"""A program for a fresh process: loads an exported folder without tuneprune and compares it with a probe.

Usage: python run_reload.py FOLDER RESULT PROBE TRUST, where RESULT is the JSON file to write, PROBE a safetensors
file with `input_ids`, `logits`, `prompt_ids` and `text_ids` (of the `text` in its metadata), and TRUST 1 where the
folder needs its own code.
"""

import json
import sys
from pathlib import Path
from typing import Any, TypeAlias

Torch: TypeAlias = Any
"""A model, tokenizer or tensor; torch and transformers are imported late."""

BLOCKED = "tuneprune"
NEW_TOKENS = 32
TIE = 1e-5
"""Share of the largest logit up to which two float32 logits count as equal."""


class Blocker:
    """Makes it impossible to import tuneprune, as on the machine of someone who receives the folder."""

    def find_spec(self, fullname: str, *_: object) -> None:
        """Return None for other modules, so that the search continues.

        Raises:
            ImportError: the module is tuneprune or a part of it.
        """
        if fullname.partition(".")[0] == BLOCKED:
            raise ImportError(f"{fullname} is not available where an exported model is loaded.")


def compare(model: Torch, probe: dict[str, Any]) -> dict[str, float | int]:
    """Largest absolute difference of logits, that over the largest absolute logit, and tokens compared."""
    import torch

    differences, logits = [], []
    with torch.no_grad():
        for input_ids, expected in zip(probe["input_ids"], probe["logits"], strict=True):
            found = model(input_ids=input_ids[None], use_cache=False).logits[0]
            differences.append((found - expected).abs().max())
            logits.append(expected.abs().max())
    largest_difference = torch.stack(differences).max()  # NaN where any of them is NaN
    return {
        "max_abs_diff": largest_difference.item(),
        "max_rel_diff": (largest_difference / torch.stack(logits).max()).item(),
        "tokens": probe["input_ids"].numel(),
    }


def sample(model: Torch, tokenizer: Torch, prompt_ids: Torch) -> dict[str, Any]:
    """A greedy continuation, and whether it is the same without the key/value cache."""
    import torch

    prompt = prompt_ids[None]
    settings: dict[str, Any] = {
        "attention_mask": torch.ones_like(prompt),
        "max_new_tokens": NEW_TOKENS,
        "do_sample": False,
        "num_beams": 1,
        "pad_token_id": tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0,
    }
    cached = model.generate(prompt, use_cache=True, **settings)[0]
    uncached = model.generate(prompt, use_cache=False, **settings)[0]
    return {
        "prompt": tokenizer.decode(prompt_ids, skip_special_tokens=True),
        "text": tokenizer.decode(cached[len(prompt_ids) :], skip_special_tokens=True),
        "cached_equals_uncached": torch.equal(cached, uncached) or parted_at_a_tie(model, cached, uncached),
    }


def parted_at_a_tie(model: Torch, cached: Torch, uncached: Torch) -> bool:
    """Whether two continuations first differ in tokens whose logits are equal up to rounding.

    Rounding, which depends on the order of additions, then decides which one is the largest.
    """
    import torch

    length = min(len(cached), len(uncached))
    place = int((cached[:length] != uncached[:length]).int().argmax())
    with torch.no_grad():
        logits = model(input_ids=uncached[None, :place], use_cache=False).logits[0, -1]
    gap = (logits[cached[place]] - logits[uncached[place]]).abs()
    return bool(gap <= TIE * logits.abs().max())


def main(folder: str, result_file: str, probe_file: str, trust: str) -> None:
    """Load, compare, generate, and write the result."""
    sys.meta_path.insert(0, Blocker())
    import torch
    from safetensors import safe_open
    from transformers import AutoModelForCausalLM, AutoTokenizer

    needs_remote_code = trust == "1"
    model = AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=needs_remote_code, use_safetensors=True, dtype=torch.float32
    )
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    model.eval()
    with safe_open(probe_file, framework="pt") as stored:
        probe = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118  (not a mapping)
        text = stored.metadata()["text"]
    result = {
        "logits": compare(model, probe),
        "generation": sample(model, tokenizer, probe["prompt_ids"]),
        "loader": {
            "class": type(model).__name__,
            "needs_remote_code": needs_remote_code,
            "host_model_type": model.config.model_type,
        },
        "tokenizer_agrees": tokenizer(text, verbose=False)["input_ids"] == probe["text_ids"].tolist(),
        "parameters_counted": sum(parameter.numel() for parameter in model.parameters()),
    }
    Path(result_file).write_text(json.dumps(result), encoding="utf8")


if __name__ == "__main__":
    main(*sys.argv[1:])
