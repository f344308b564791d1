"""Every use of an exported folder, tried in a process without tuneprune.

Usage: python reload_child.py JOBS RESULTS. JOBS lists {folder, ragged, full}; `x.expected` is next to folder `x`.
"""

import json
import sys
import tempfile
import traceback
import warnings
from pathlib import Path

sys.modules["tuneprune"] = None  # importing it raises from here on
sys.path.append(str(Path(__file__).parents[1]))

import torch  # noqa: E402
from helpers.precision import EXACT, FullPrecision  # noqa: E402
from peft import LoraConfig, get_peft_model  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, logging  # noqa: E402

logging.disable_progress_bar()
logging.set_verbosity_error()
GREEDY = {"max_new_tokens": 6, "do_sample": False}


def load(folder, auto=AutoModelForCausalLM, **settings):
    model = auto.from_pretrained(folder, trust_remote_code=True, **{"dtype": "auto"} | settings).eval()
    if model.dtype == torch.float64:
        model.set_experts_implementation("eager")  # the others do not support double precision
    return model


@torch.no_grad()
def logits(model, ids):
    return model(input_ids=ids, use_cache=False).logits


def exact_logits(model, ids):
    """In the model's own precision, float64 too."""
    with FullPrecision():
        return logits(model, ids)


def difference(found, expected):
    return ((found.double() - expected.double()).abs().max() / expected.double().abs().max()).item()


def generates_alike(model, ids, **settings):
    reference = model.generate(ids, attention_mask=torch.ones_like(ids), use_cache=False, **GREEDY)
    return torch.equal(model.generate(ids, attention_mask=torch.ones_like(ids), **settings, **GREEDY), reference)


def pads_left_alike(model, ids):
    """Rows of unequal length in one batch continue as each does alone."""
    short, long = ids[0, :5], ids[1, :9]
    batch = torch.stack([torch.cat([torch.zeros(4, dtype=torch.long), short]), long])
    mask = torch.stack([torch.tensor([0] * 4 + [1] * 5), torch.ones(9, dtype=torch.long)])
    together = model.generate(batch, attention_mask=mask, pad_token_id=0, eos_token_id=[], **GREEDY)[:, 9:]
    alone = [
        model.generate(row[None], attention_mask=torch.ones_like(row[None]), pad_token_id=0, eos_token_id=[], **GREEDY)
        for row in (short, long)
    ]
    return torch.equal(together[0], alone[0][0, 5:]) and torch.equal(together[1], alone[1][0, 9:])


def gradients(model, ids):
    model.zero_grad()
    model.train()
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    model.eval()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def checkpoints_alike(model, ids):
    plain = gradients(model, ids)
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)  # older name
    enable()
    calls = []
    hook = model.base_model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    recomputed = gradients(model, ids)
    hook.remove()
    getattr(model, "activation_checkpointing_disable", model.gradient_checkpointing_disable)()
    return len(calls) == 2 and plain.abs().max() > 0 and torch.allclose(recomputed, plain, **EXACT)


def learns_with_lora(folder, ids):
    model = get_peft_model(load(folder), LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    before = model(input_ids=ids, labels=ids).loss
    before.backward()
    optimizer.step()
    merged = model.eval()
    tuned = logits(merged, ids)
    alike = difference(logits(merged.merge_and_unload(), ids), tuned) < 1e-5
    return alike and bool(torch.isfinite(before))


def saves_again_alike(model, folder, ids):
    with tempfile.TemporaryDirectory() as copy:
        model.save_pretrained(copy)
        again = load(copy)
        same_map = getattr(again.config, "auto_map", None) == getattr(model.config, "auto_map", None)
        inner = load(copy, AutoModel)
        return torch.equal(logits(again, ids), logits(model, ids)) and same_map and inner is not None


@torch.no_grad()
def inner_agrees(model, folder, ids):
    inner = load(folder, AutoModel)
    states = [part(input_ids=ids, use_cache=False).last_hidden_state for part in (inner, model.base_model)]
    return type(inner) is type(model.base_model) and torch.equal(*states)


@torch.no_grad()
def shows_attention(folder, ids):
    model = load(folder, attn_implementation="eager")
    attentions = model(input_ids=ids, output_attentions=True, use_cache=False).attentions
    rows = [weights.sum(-1) for weights in attentions or ()]
    ones = all(torch.allclose(row, torch.ones_like(row), atol=1e-5) for row in rows)
    return len(rows) == model.config.num_hidden_layers and ones


def loads_in_bfloat16(folder, ids):
    model = load(folder, dtype=torch.bfloat16)
    whole = [name for name, buffer in model.named_buffers() if name.endswith("_index") and buffer.dtype != torch.long]
    return not whole and bool(torch.isfinite(logits(model, ids)).all())


def refused_without_trust(folder):
    try:
        AutoModelForCausalLM.from_pretrained(folder)
    except (RuntimeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"[:200]
    return ""


def examine(job):
    folder = job["folder"]
    expected = load_file(Path(folder).with_suffix(".expected"))
    ids = expected["input_ids"]
    model = load(folder)
    found = {
        "class": type(model).__name__,
        "module": type(model).__module__,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "dtype": str(model.dtype),
        "rope": model.config.rope_parameters,
        "difference": difference(exact_logits(model, ids), expected["logits"]),
    }
    if job["ragged"]:
        found["refusal"] = refused_without_trust(folder)
    if not job["full"]:
        return found
    # float32, because Hugging Face's eager attention takes the softmax there and a float64 mask becomes -inf
    eager = load(folder, attn_implementation="eager", dtype=torch.float32)
    return found | {
        "eager": difference(logits(eager, ids), expected["logits"]),
        "dynamic_cache": generates_alike(model, ids, use_cache=True),
        "static_cache": generates_alike(model, ids, cache_implementation="static"),
        "left_padding": pads_left_alike(eager if model.config._attn_implementation == "eager" else model, ids),
        "left_padding_eager": pads_left_alike(eager, ids),
        "gradient_checkpointing": bool(checkpoints_alike(model, ids)),
        "lora": learns_with_lora(folder, ids),
        "round_trip": saves_again_alike(model, folder, ids),
        "inner_model": inner_agrees(model, folder, ids),
        "attentions": shows_attention(folder, ids),
        "bfloat16": loads_in_bfloat16(folder, ids),
        "tokenizer": AutoTokenizer.from_pretrained(folder)("the cat")["input_ids"],
        "generation_config": GenerationConfig.from_pretrained(folder).eos_token_id,
    }


def main(jobs_file, results_file):
    results = {}
    for job in json.loads(Path(jobs_file).read_text()):
        try:
            with warnings.catch_warnings(record=True) as heard:
                warnings.simplefilter("always")
                warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing")  # peft asks by the old name
                warnings.filterwarnings("ignore", message=".*_pattern keys did not match")  # peft on packed experts
                results[job["folder"]] = examine(job)
            results[job["folder"]]["warnings"] = [str(warning.message) for warning in heard]
        except Exception:  # the parent's test shows it
            results[job["folder"]] = {"crash": traceback.format_exc()}
    Path(results_file).write_text(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
