"""A program for a fresh process: loads a quantised folder and compares it with its float model.

Usage: python run_reload.py FOLDER RESULT PROBE SOURCE TRUST, where PROBE is a safetensors file with `input_ids`,
`logits` and `prompt_ids`, SOURCE the folder of the float weights and TRUST 1 where FOLDER needs its own code.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

HfModel: TypeAlias = Any
"""Has the methods of many classes of transformers, some of which hide from type checkers."""
NEW_TOKENS = 32
NF4_BLOCK = 64


def dequantised(model: nn.Module) -> Iterator[tuple[str, Tensor, Any]]:
    """Every quantised linear layer: its name, its weights in float32, and the allowed error of each weight.

    The last is a function of the float weights. int8 has 127 steps up to the largest weight of a row; half a step is
    rounding, and weights may have been rounded to half precision before. NF4's levels, in units of the largest weight
    of 64, lie at most 0.304 apart (between -1 and -0.696).
    """
    for name, module in model.named_modules():
        weight: Any = getattr(module, "weight", None)
        kind = type(module).__name__
        if kind == "Linear4bit":
            from bitsandbytes.functional import dequantize_4bit

            yield name, dequantize_4bit(weight.data, weight.quant_state).float(), _nf4_step
        elif kind == "Linear8bitLt":
            yield name, weight.CB.float() * weight.SCB[:, None] / 127, _int8_step
        elif isinstance(module, nn.Linear) and type(weight.data).__module__.startswith("torchao."):
            yield name, weight.dequantize().float(), _int8_step


def _int8_step(weight: Tensor) -> Tensor:
    return weight.abs().amax(1, keepdim=True) * 0.6 / 127


def _nf4_step(weight: Tensor) -> Tensor:
    blocks = weight.reshape(-1, NF4_BLOCK)
    return (blocks.abs().amax(1, keepdim=True) * 0.155).expand_as(blocks).reshape(weight.shape)


def check_weights(model: nn.Module, source: Path) -> dict[str, Any]:
    """How many linears are quantised, and the largest error of a weight in units of what its format rounds."""
    from safetensors import safe_open

    files = {}
    for file in sorted(source.glob("*.safetensors")):
        with safe_open(file, framework="pt") as stored:
            files |= dict.fromkeys(stored.keys(), file)
    errors: dict[str, float] = {}
    for name, found, step in dequantised(model):
        with safe_open(files[f"{name}.weight"], framework="pt") as stored:
            expected = stored.get_tensor(f"{name}.weight").float()
        allowed = step(expected).clamp(min=torch.finfo(torch.float32).tiny)
        errors[name] = ((found - expected).abs() / allowed).max().item()
    assert errors, "no layer is quantised"
    worst = max(errors, key=errors.__getitem__)
    return {"layers": len(errors), "worst": worst, "worst_error_in_steps": errors[worst]}


def difference(found: Tensor, expected: Tensor) -> dict[str, float]:
    """Largest and mean absolute difference, in all and over the largest absolute value expected."""
    off, largest = (found - expected).abs(), expected.abs().max()
    return {
        "max_abs_diff": off.max().item(),
        "max_rel_diff": (off.max() / largest).item(),
        "mean_rel_diff": (off.mean() / largest).item(),
    }


def perplexity(logits: Tensor, ids: Tensor) -> float:
    """Of every token after the first of its row."""
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).exp().item()


def greedy(model: HfModel, prompt: Tensor, *, use_cache: bool) -> Tensor:
    """The next NEW_TOKENS tokens after the prompt, past any end of text."""
    ids = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        num_beams=1,
        use_cache=use_cache,
        pad_token_id=0,
        eos_token_id=None,
    )
    return ids[0, prompt.shape[1] :]


@torch.no_grad()
def main(folder: str, result_file: str, probe_file: str, source: str, trust: str) -> None:
    """Load, compare weights and answers, generate, and write the result."""
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM
    from transformers import __version__ as version

    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=trust == "1", use_safetensors=True).eval()
    weights = check_weights(model, Path(source))  # first: kernels repack some weights when they are used
    probe = load_file(probe_file)
    ids, expected = probe["input_ids"], probe["logits"]
    logits = torch.cat([model(input_ids=row[None], use_cache=False).logits.float() for row in ids])
    step = model(input_ids=ids[:1, :-1], use_cache=True)
    last = model(input_ids=ids[:1, -1:], past_key_values=step.past_key_values).logits.float()
    cached, uncached = (greedy(model, probe["prompt_ids"][None], use_cache=use_cache) for use_cache in (True, False))
    before, after = perplexity(expected, ids), perplexity(logits, ids)
    result = {
        "engine": f"transformers {version}",
        "weights": weights,
        "logits": difference(logits, expected) | {"tokens": ids.numel()},
        "cached_logits": difference(last[0], logits[0, -1:]),
        "top1_agreement": (logits.argmax(-1) == expected.argmax(-1)).float().mean().item(),
        "perplexity": {"float": before, "quantised": after, "ratio": after / before},
        "greedy_ids": cached.tolist(),
        "cached_equals_uncached": torch.equal(cached, uncached),
    }
    Path(result_file).write_text(json.dumps(result), encoding="utf8")


if __name__ == "__main__":
    main(*sys.argv[1:])
