"""Made-up but plausible records, shared by the report's tests."""

import math
import random

from tuneprune.report import ComparisonRecord, Proof, ReferenceRecord, RunRecord

TASKS = ("clinic_text", "clinic_nli", "clinic_qa", "clinic_summary")


def scores(quality):
    return {
        "clinic_text": {"perplexity": 9.0 / quality, "nats_per_byte": 0.7 / quality},
        "clinic_nli": {"accuracy": 0.9 * quality},
        "clinic_qa": {"macro_f1": 0.8 * quality, "accuracy": 0.82 * quality},
        "clinic_summary": {"rouge1": 0.6 * quality, "rouge2": 0.4 * quality, "rougeL": 0.55 * quality},
    }


def parameters(keep=0.6):
    total, prunable = 6_000_000, 5_000_000
    kept = round(total * keep)
    return {
        "dense_total": total,
        "kept_total": kept,
        "share_total": kept / total,
        "dense_prunable": prunable,
        "kept_prunable": prunable - (total - kept),
        "share_prunable": (prunable - (total - kept)) / prunable,
        "target": keep,
        "of": "total",
        "largest_unit": 16_384,
    }


def proof_data(**changes):
    data = {
        "schema": 1,
        "parameters": parameters(),
        "logits": {"max_abs_diff": 2.1e-6, "max_rel_diff": 3.4e-7, "dtype": "float32", "tokens": 512},
        "lora_residue": {"before_projection": 0.031, "relative": 0.0042},
        "generation": {
            "prompt": "The patient reports",
            "text": "a sore throat for three days without fever. Temperature 37.1.",
            "cached_equals_uncached": True,
        },
        "loader": {"class": "TunedPrunedForCausalLM", "needs_remote_code": True, "host_model_type": "llama"},
        "bytes_on_disk": {"dense": 12_000_000, "pruned": 7_210_000},
    }
    return data | changes


def widths(num_layers=8):
    generator = random.Random(0)
    result = {}
    for layer in range(num_layers):
        kept = generator.choice((2, 3, 4))
        result[f"layers.{layer}.attention"] = {"kind": "kv_group", "kept": kept, "size": 4}
        share = 0.35 + 0.5 * abs(layer / num_layers - 0.4) + generator.uniform(-0.08, 0.08)
        result[f"layers.{layer}.mlp"] = {"kind": "mlp_channel", "kept": round(704 * share), "size": 704}
    return result


def spread(median):
    return {"median": median, "low": 0.95 * median, "high": 1.04 * median}


def speed(decode_ratio=1.01):
    settings = [
        {
            "batch_size": size,
            "phase": phase,
            "dense": spread(rate),
            "pruned": spread(rate * ratio),
            "ratio": spread(ratio),
        }
        for size in (1, 8)
        for phase, rate, ratio in (("prefill", 5200.0 * size, 1.42), ("decode", 160.0 * size, decode_ratio))
    ]
    fixed = {
        "device": "cpu",
        "dtype": "float32",
        "threads": 2,
        "prompt_tokens": 64,
        "new_tokens": 32,
        "repeats": 5,
    }
    return fixed | {"settings": settings}


def record_data(method="atp", quality=0.95, seed=0, decision="dynamic", **changes):
    hyper_parameters = {"decision": decision, "temperature": 0.4} if method == "atp" else {}
    data = {
        "schema": 1,
        "created": "2026-01-15T10:00:00",
        "method": {"name": method, **hyper_parameters},
        "space": "width",
        "budget": {"keep": 0.6, "of": "total", "multiple_of": 1, "per_layer": "free"},
        "seed": seed,
        "model": {"id": "models/clinic-llama-6m", "family": "llama", "parameters": 6_000_000},
        "data": {
            "train": {
                "sources": [
                    {
                        "source": "clinic_nli",
                        "examples": 3000,
                        "dropped": 0,
                        "weight": 1.0,
                        "sha256": "ab" * 32,
                    },
                    {
                        "source": "somewhere/notes.jsonl",
                        "examples": 410,
                        "dropped": 2,
                        "weight": 0.5,
                        "sha256": "cd" * 32,
                    },
                ],
                "tokens": 310_000,
            },
            "calibration": {"sources": [], "examples": 400, "held_out_of_train": True},
            "overlap": {"train_test": {"items": 0, "passages": 3}},
            "max_length": 256,
        },
        "parameters": parameters(),
        "scores": {"dense": scores(0.45), "dense_tuned": scores(1.0), "pruned": scores(quality)},
        "relative_performance": {"mean": quality, "tasks": dict.fromkeys(TASKS, quality)},
        "time": {"tune_s": 81.2, "plan_s": 0.4, "compress_s": 1.1, "evaluate_s": 42.0},
        "memory": {"peak_bytes": 1_310_000_000},
        "speed": speed(),
        "environment": {
            "python": "3.11.2",
            "torch": "2.13.0",
            "platform": "Linux",
            "cpu": "4 cores",
            "threads": 2,
        },
        "widths": widths(),
        "training": {
            "steps": 300 if method == "atp" else 0,
            "recover_steps": 0 if method == "atp" else 300,
            "lora_residue": {"before_projection": 0.031, "relative": 0.0042},
        },
    }
    return data | changes


def record(*arguments, **changes):
    return RunRecord.from_data(record_data(*arguments, **changes), "sample")


def proof(**changes):
    return Proof.from_data(proof_data(**changes), "sample")


def metrics(steps=300):
    generator = random.Random(1)
    logged = []
    for step in range(1, steps + 1, 2):
        progress = step / steps
        entry = {"step": step, "phase": "control" if progress < 0.5 else "frozen"}
        entry["loss"] = 2.0 + 2.4 * math.exp(-5 * progress) + generator.gauss(0, 0.12)
        entry["lasso"] = 8.0 * math.exp(-6 * progress) + 0.01
        entry["kept_share"] = 0.6 + 0.4 * math.exp(-14 * progress) + (progress < 0.5) * generator.gauss(0, 0.004)
        if progress < 0.5:
            entry["calibration_loss"] = 2.3 + 2.2 * math.exp(-6 * progress) + generator.gauss(0, 0.1)
            entry["budget_loss"] = 0.5 * math.exp(-16 * progress) + abs(generator.gauss(0, 0.003))
            entry["soft_share"] = entry["kept_share"] + 0.02 * math.exp(-6 * progress)
            entry["mask_churn"] = 0.2 * math.exp(-8 * progress) + abs(generator.gauss(0, 0.004))
        logged.append(entry)
    return logged


QUALITY = {"atp": (0.95, 0.93, 0.97), "magnitude": (0.90, 0.89, 0.88)}


def reference(seed, quality=1.0):
    content = {"schema": 1, "seed": seed, "scores": {"dense": scores(0.45), "dense_tuned": scores(quality)}}
    return ReferenceRecord.from_data(content | {"time": {"reference_s": 60.0}}, "reference")


def comparison(quality=None, against="atp", keeps=(0.6,), failed=None, drop=()):
    found = {}
    for name, values in (quality or QUALITY).items():
        for keep in keeps:
            for seed, value in enumerate(values):
                if (name, seed) not in drop:
                    budget = {"keep": keep, "of": "total"}
                    made = record(name, value, seed=seed, budget=budget, parameters=parameters(keep), label=name)
                    found[f"{name}-keep{keep}-seed{seed}"] = made
    seeds = range(max(len(values) for values in (quality or QUALITY).values()))
    return ComparisonRecord.of(found, [reference(seed) for seed in seeds], against, failed or {})
