"""Downstream use of exported folders in a process without tuneprune: adapters, merging, compiling.

Usage: python downstream_child.py JOBS RESULTS, where JOBS lists folders.
"""

import json
import sys
import tempfile
import traceback
from itertools import pairwise
from pathlib import Path

sys.modules["tuneprune"] = None  # importing it raises from here on

import torch  # noqa: E402
from peft import LoraConfig, PeftModel, get_peft_model  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer, logging, pipeline  # noqa: E402

logging.disable_progress_bar()
logging.set_verbosity_error()
GREEDY = {"max_new_tokens": 6, "do_sample": False, "min_new_tokens": 6}
BY_NAME = ["q_proj", "qkv_proj", "o_proj", "gate_proj", "gate_up_proj", "down_proj"]


def load(folder, **settings):
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, **settings).eval()


@torch.no_grad()
def logits(model, ids):
    return model(input_ids=ids, use_cache=False).logits


def agree(one, other):
    return torch.allclose(one, other, rtol=1e-4, atol=1e-4)


def adapted(folder, targets):
    torch.manual_seed(0)
    return get_peft_model(load(folder), LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM"))


def train(model, ids, steps=3):
    """The losses before each step, and after the last."""
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    losses = []
    for _ in range(steps):
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.eval()
    with torch.no_grad():
        return [*losses, model(input_ids=ids, labels=ids, use_cache=False).loss.item()]


def falls(losses):
    return all(later < earlier for earlier, later in pairwise(losses))


def learns(folder, ids, scratch, targets):
    """Three steps, each lower; the adapter saved and put on a fresh copy; merged, saved and loaded: all the same."""
    model = adapted(folder, targets)
    losses, tuned = train(model, ids), logits(model, ids)
    model.save_pretrained(scratch / "adapter")
    again = PeftModel.from_pretrained(load(folder), scratch / "adapter").eval()
    merged = model.merge_and_unload()
    merged.save_pretrained(scratch / "merged")
    return {
        "loss falls": falls(losses),
        "adapter loads again": agree(logits(again, ids), tuned),
        "merging": agree(logits(merged, ids), tuned),
        "merged model loads again": agree(logits(load(scratch / "merged"), ids), tuned),
        "saved model is complete": is_complete(Path(folder), scratch / "merged"),
    }


def is_complete(original, copy):
    """A saved copy brings its own code wherever the original does, and does not point back to it."""
    auto_map = json.loads((copy / "config.json").read_text()).get("auto_map", {})
    code = [file.name for file in original.glob("*.py")]
    return all((copy / name).is_file() for name in code) and not any("--" in place for place in auto_map.values())


def checkpoints(folder, ids):
    """Activation checkpointing under LoRA: the same losses."""
    plain = train(adapted(folder, "all-linear"), ids)
    model = adapted(folder, "all-linear")
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return falls(plain) and torch.allclose(torch.tensor(train(model, ids)), torch.tensor(plain), rtol=1e-4)


@torch.no_grad()
def generates(model, ids, **settings):
    return model.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=0, **GREEDY, **settings)


def serves(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pipe = pipeline("text-generation", model=folder, trust_remote_code=True)
    said = pipe("the cat sat", return_full_text=False, **GREEDY)[0]["generated_text"]
    ids = tokenizer("the cat sat", return_tensors="pt").input_ids
    expected = generates(load(folder), ids)[0, ids.shape[1] :]
    return said.strip() == tokenizer.decode(expected, skip_special_tokens=True).strip()


def examine(folder, scratch):
    ids = (torch.arange(24).view(2, 12) * 7) % 60 + 3
    model = load(folder)
    plain = logits(model, ids)
    found = {f"all linears: {name}": good for name, good in learns(folder, ids, scratch / "all", "all-linear").items()}
    found |= {f"by name: {name}": good for name, good in learns(folder, ids, scratch / "named", BY_NAME).items()}
    found |= {
        "checkpointing": checkpoints(folder, ids),
        "device_map cpu": torch.equal(logits(load(folder, device_map="cpu"), ids), plain),
        "device_map auto": agree(logits(load(folder, device_map="auto"), ids).cpu(), plain),
        "sdpa as eager": agree(*(logits(load(folder, attn_implementation=a), ids) for a in ("sdpa", "eager"))),
        "beams": torch.equal(*(generates(model, ids, num_beams=3, use_cache=cache) for cache in (True, False))),
        "pipeline": serves(folder),
        # inductor needs a C++ compiler, which not every machine has; these trace the same graphs
        "compiled": agree(logits(torch.compile(model, backend="aot_eager"), ids), plain),
        "static cache": torch.equal(generates(model, ids, cache_implementation="static"), generates(model, ids)),
        "bfloat16": bool(torch.isfinite(logits(load(folder, dtype=torch.bfloat16), ids)).all()),
    }
    return found


def main(jobs_file, results_file):
    results = {}
    for folder in json.loads(Path(jobs_file).read_text()):
        try:
            with tempfile.TemporaryDirectory() as scratch:
                results[folder] = examine(folder, Path(scratch))
        except Exception:  # the parent's test shows it
            results[folder] = {"crash": traceback.format_exc()}
    Path(results_file).write_text(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
