"""Prefill and decode speed of pruned models relative to the dense one, and how close it is to the ideal.

    python benchmarks/decode.py

Writes `benchmarks/results/decode.json`. Three subjects at keep 0.6: `base`, the embedded model, and two llamas with
random weights, large enough that reading weights takes most of a step: `deep` (24 layers of 1024) and `broad` (12 of
1536, so fewer operations for as many weights). Their variants: `ragged` (the MLP widths are odd), `aligned` (ragged, in
multiples of 64) and `uniform` (the same width in all layers). The kept units are random, because speed depends on
widths only. Every engine runs in its own process, where the variants take turns at every step, so that load on the
machine slows all of them; numbers are medians and extremes over the rounds, and decoding in a round counts as its
median step. On a CPU with one thread, time is the thread's CPU time, which other processes do not change.

`ideal` is the speed-up that the weights alone allow: for decoding, the dense model's weights read for one token over
the variant's; for prefill, its floating-point operations over the variant's. `of_ideal` is the median ratio over that.
With `--device cuda`, llama.cpp runs all layers on the GPU if it was built for it.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
KEEP = 0.6
TOKENS = {"prompt_tokens": 64, "new_tokens": 16}
SUBJECTS: dict[str, dict[str, Any]] = {
    "base": {
        "batch_sizes": (1, 8),
        "variants": {"ragged": {}, "aligned": {"multiple_of": 64}, "uniform": {"per_layer": "uniform"}},
    },
    "deep": {
        "shape": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16},
        "batch_sizes": (1,),
        "variants": {
            "ragged": {},
            "aligned": {"multiple_of": 64},
            "uniform": {"multiple_of": 64, "per_layer": "uniform"},
        },
    },
    "broad": {
        "shape": {"hidden_size": 1536, "intermediate_size": 6144, "num_hidden_layers": 12, "num_attention_heads": 24},
        "batch_sizes": (1,),
        "variants": {"aligned": {"multiple_of": 64}},
    },
}
COMMON = {"num_key_value_heads": 8, "vocab_size": 4096, "max_position_embeddings": 512, "tie_word_embeddings": True}
ENGINES = ("transformers:float32", "transformers:bfloat16", "llama.cpp:f16")


def dense_model(subject: str) -> Any:  # noqa: ANN401
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    if subject == "base":
        return AutoModelForCausalLM.from_pretrained(ROOT / "embedded" / "base", dtype=torch.float32)
    return AutoModelForCausalLM.from_config(LlamaConfig(**SUBJECTS[subject]["shape"], **COMMON), dtype=torch.float32)


def drawn_masks(space: Any, variant: str, settings: dict[str, Any]) -> dict[str, Any]:  # noqa: ANN401
    """Masks within the budget from random scores, with widths that differ from layer to layer."""
    import torch

    from tuneprune.budget import Budget, allocate

    draw = torch.Generator().manual_seed(1)
    scores = {g.name: torch.rand(g.size, generator=draw) + torch.rand(1, generator=draw) for g in space.groups}
    masks = allocate(scores, space, Budget(keep=KEEP, **settings))
    for group in space.groups if variant == "ragged" else ():
        kept = masks[group.name].nonzero().squeeze(1)
        if group.kind == "mlp_channel" and len(kept) % 2 == 0:
            masks[group.name][kept[-1]] = 0
    return masks


def build(subject: str, folder: Path) -> dict[str, dict[str, Any]]:
    """Export every variant to a folder; its sizes and its ideal speed-up."""
    import torch
    from transformers import AutoTokenizer

    from tuneprune import export, families
    from tuneprune.compress import compress
    from tuneprune.structure import spaces
    from tuneprune.structure.plan import Plan

    tokenizer = AutoTokenizer.from_pretrained(ROOT / "embedded" / "base")
    facts = {}
    for variant, settings in {"dense": None, **SUBJECTS[subject]["variants"]}.items():
        model, widths = dense_model(subject), None
        if settings is not None:
            architecture = families.describe(model)
            space = spaces.build("width", architecture, model)
            plan = Plan.from_masks(drawn_masks(space, variant, settings), space)
            model = compress(model, architecture, space, plan)
            widths = [plan.widths(space)[group.name] for group in space.groups]
        export.write(model.to(torch.bfloat16), tokenizer, folder / variant)
        facts[variant] = costs(model) | {"class": type(model).__name__, "widths": widths}
    for fact in facts.values():
        fact["ideal"] = {phase: facts["dense"][phase] / fact[phase] for phase in ("decode", "prefill")}
    return facts


def costs(model: Any) -> dict[str, int]:  # noqa: ANN401
    """Parameters, those read for one token, and the operations of a prefill with logits for the last token only."""
    from torch import nn

    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    inside = sum(linear.weight.numel() for name, linear in linears.items() if name != "lm_head")
    heads = sum(linear.in_features for name, linear in linears.items() if name.endswith("o_proj"))
    head, length = linears["lm_head"].weight.numel(), TOKENS["prompt_tokens"]
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "decode": inside + head,
        "prefill": 2 * (length * inside + head + length**2 * heads),
    }


def with_transformers(folder: Path, precision: str, variants: list[str], arguments: argparse.Namespace) -> Any:  # noqa: ANN401
    """Rows {batch_size, phase, variant: {speed, ratio}}, measured by tuneprune's `measure_speed`."""
    import torch

    from tuneprune import export
    from tuneprune.evaluate import measure_speed

    torch.set_num_threads(arguments.threads)
    dtype = getattr(torch, precision)
    models = {name: export.load_exported(folder / name, dtype).to(arguments.device) for name in variants}
    sizes = SUBJECTS[arguments.child]["batch_sizes"]
    models = {"dense": models.pop("dense"), "pruned": models.pop("aligned"), **models}
    found = measure_speed(models, batch_sizes=sizes, repeats=arguments.rounds, clock=clock_of(arguments), **TOKENS)
    rows = []
    for setting in found["settings"]:
        row = {name: setting[name] for name in ("batch_size", "phase")}
        row["dense"] = {"speed": setting["dense"]}
        row["aligned"] = {"speed": setting["pruned"], "ratio": setting["ratio"]}
        row |= {name: {key: twin[key] for key in ("speed", "ratio")} for name, twin in setting.get("twins", {}).items()}
        rows.append(row)
    return rows


def with_llama_cpp(folder: Path, _precision: str, variants: list[str], arguments: argparse.Namespace) -> Any:  # noqa: ANN401
    """The same rows, measured with llama.cpp at batch size 1."""
    from llama_cpp import Llama

    options: dict[str, Any] = {"n_ctx": 256, "n_threads": arguments.threads, "n_threads_batch": arguments.threads}
    options |= {"n_gpu_layers": -1 if arguments.device == "cuda" else 0, "flash_attn": True, "verbose": False}
    models = {}
    for name in variants:
        (file,) = (folder / f"{name}-gguf").glob("*.gguf")
        models[name] = Llama(str(file), **options)
    rates: dict[str, dict[str, list[float]]] = {phase: {n: [] for n in variants} for phase in ("prefill", "decode")}
    for index in range(-1, arguments.rounds):  # the first round is not counted
        seconds = llama_cpp_round(models, index, clock_of(arguments))
        for name, (first, *steps) in seconds.items() if index >= 0 else ():
            rates["prefill"][name].append(TOKENS["prompt_tokens"] / first)
            rates["decode"][name].append(1 / statistics.median(steps))
    rows: list[dict[str, Any]] = []
    for phase, by_name in rates.items():
        dense = by_name["dense"]
        row: dict[str, Any] = {"batch_size": 1, "phase": phase, "dense": {"speed": spread(dense)}}
        for name in (name for name in variants if name != "dense"):
            ratios = [rate / base for rate, base in zip(by_name[name], dense, strict=True)]
            row[name] = {"speed": spread(by_name[name]), "ratio": spread(ratios)}
        rows.append(row)
    return rows


def llama_cpp_round(models: dict[str, Any], index: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Seconds of every model's prefill and of each step after it; speed does not depend on the tokens."""
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for step in range(TOKENS["new_tokens"] + 1):
        first = (index + step) % len(models)  # so that no model is always the second one
        for name in (*list(models)[first:], *list(models)[:first]):
            if step == 0:
                models[name].reset()
            started = clock()
            models[name].eval([step + 5] if step else list(range(5, 5 + TOKENS["prompt_tokens"])))
            seconds[name].append(clock() - started)
    return seconds


def clock_of(arguments: argparse.Namespace) -> Callable[[], float]:
    """The clock: CPU time if there is only one thread."""
    return time.thread_time if arguments.threads == 1 and arguments.device == "cpu" else time.perf_counter


def spread(numbers: list[float]) -> dict[str, float]:
    """Median and extremes."""
    return {"median": statistics.median(numbers), "low": min(numbers), "high": max(numbers)}


def write_gguf(folder: Path, variants: list[str]) -> str | None:
    """Convert every variant; the reason if that is not possible, otherwise None."""
    from tuneprune import export
    from tuneprune.errors import TunePruneError

    if find_spec("llama_cpp") is None:
        return "llama-cpp-python is not installed"
    if "gguf" not in export.registry():
        return "tuneprune has no gguf export"
    try:
        for name in variants:
            export.convert(folder / name, export.build("gguf"), folder / f"{name}-gguf", None)
    except TunePruneError as error:
        return str(error)
    return None


def measure(subject: str, engine: str, folder: Path, facts: dict[str, Any], arguments: argparse.Namespace) -> Any:  # noqa: ANN401
    """One engine on one subject in a fresh process, each ratio with its ideal; or why it was not run."""
    if engine.startswith("llama.cpp"):
        reason = write_gguf(folder, list(facts))
        if reason:
            return {"not_run": reason}
    before = os.getloadavg()[0]
    command = [sys.executable, __file__, "--child", subject, "--engine", engine, "--folder", str(folder)]
    command += ["--variants", ",".join(facts), "--device", arguments.device]
    command += ["--threads", str(arguments.threads), "--rounds", str(arguments.rounds)]
    environment = os.environ | {"OMP_NUM_THREADS": str(arguments.threads)}
    child = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if child.returncode:
        return {"not_run": (child.stderr.strip().splitlines() or [f"exit status {child.returncode}"])[-1]}
    rows = json.loads(child.stdout.splitlines()[-1])
    for row in rows:
        for name in (name for name in facts if name != "dense"):
            row[name]["ideal"] = facts[name]["ideal"][row["phase"]]
            row[name]["of_ideal"] = row[name]["ratio"]["median"] / row[name]["ideal"]
    return {"settings": rows, "load_average": [before, os.getloadavg()[0]]}


def environment(arguments: argparse.Namespace) -> dict[str, Any]:
    """Machine and versions."""
    import torch

    lines = Path("/proc/cpuinfo").read_text(encoding="utf8").splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    git = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False, cwd=ROOT)
    names = ["torch", "transformers", "tuneprune", *(["llama_cpp_python"] if find_spec("llama_cpp") else [])]
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": arguments.threads,
        "device": torch.cuda.get_device_name() if arguments.device == "cuda" else "cpu",
        **{name: version(name) for name in names},
        "commit": git.stdout.strip() or None,
    }


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjects", default=",".join(SUBJECTS))
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "decode.json")
    for hidden in ("--child", "--engine", "--folder", "--variants"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    arguments = parsed()
    if arguments.child:
        engine, _, precision = arguments.engine.partition(":")
        run = with_llama_cpp if engine == "llama.cpp" else with_transformers
        print(json.dumps(run(Path(arguments.folder), precision, arguments.variants.split(","), arguments)))
        return
    content: dict[str, Any] = {"settings": {"keep": KEEP, "rounds": arguments.rounds, **TOKENS}}
    content["settings"]["clock"] = clock_of(arguments).__name__
    content |= {"environment": environment(arguments), "subjects": {}}
    for subject in arguments.subjects.split(","):
        with tempfile.TemporaryDirectory(prefix="tuneprune-decode-") as name:
            facts = build(subject, Path(name))
            engines = {}
            for engine in arguments.engines.split(","):
                engines[engine] = measure(subject, engine, Path(name), facts, arguments)
                print(subject, engine, json.dumps(engines[engine])[:2000], file=sys.stderr)
        content["subjects"][subject] = {"variants": facts, "engines": engines}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf8")
    print(arguments.out)


if __name__ == "__main__":
    main()
