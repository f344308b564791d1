"""Peak memory of `compress` on a LLaMA with the shape of 7B and random weights, and of `export --to gguf` after it.

    python benchmarks/streaming.py

Writes `benchmarks/results/streaming.json`. The dense model (13.5 GB in bfloat16, in files of 2 GB) and the smaller one
need 22 GB of disk, in a temporary folder that is removed afterwards. Each command runs in its own process; its peak is
the largest resident set by Linux (VmHWM: unlike ru_maxrss it does not start at the size of the parent), which includes
the interpreter, the libraries and the pages of mapped files. `imports_bytes` is the peak of a process that only imports
what the commands need. The documented bound is 1.1 times the largest weight file that is read, plus 1 GB, in total.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, PreTrainedModel

from tuneprune import families
from tuneprune.budget import Budget, allocate
from tuneprune.model.loading import skeleton
from tuneprune.structure import spaces
from tuneprune.structure.plan import Plan

ROOT = Path(__file__).resolve().parents[1]
TOKENIZER = ROOT / "embedded" / "base"
SHARD_BYTES = 2 * 10**9
EXPORT = "gguf:tokenizer=none"  # the tokenizer has another vocabulary than the model
SHAPE: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "dtype": "bfloat16",
}
CHILD = """
import json, sys, time
sys.argv = ["tuneprune", *sys.argv[1:]]
from tuneprune.cli.commands import main
started = time.perf_counter()
if sys.argv[1:]:
    try:
        main()
    except SystemExit as end:
        assert not end.code, end.code
else:
    import tuneprune.pipeline.stages
seconds = time.perf_counter() - started
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({"peak_bytes": int(peak) * 1024, "seconds": seconds}))
"""


def write_dense(folder: Path, model: PreTrainedModel) -> None:
    """Write random weights with the shapes of `model`, and a tokenizer, which has fewer tokens than the model."""
    noise = torch.randn(2**28, generator=torch.Generator().manual_seed(0)).mul_(0.02).bfloat16()
    shards: list[list[str]] = [[]]
    size = 0
    tensors = model.state_dict()
    for name, tensor in tensors.items():
        if size and size + tensor.nbytes > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += tensor.nbytes
    index: dict[str, str] = {}
    start = 0
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        content: dict[str, torch.Tensor] = {}
        for name in names:
            count = tensors[name].numel()
            start = (start + 7919) % (len(noise) - count)  # different weights in every tensor
            content[name] = noise[start : start + count].view(tensors[name].shape).clone()
        save_file(content, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(names, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    model.config.save_pretrained(folder)
    for file in TOKENIZER.glob("tokenizer*"):
        shutil.copy(file, folder)


def random_plan(model: PreTrainedModel, space_name: str, keep: float) -> Plan:
    """Random units of the whole model, so that widths differ from layer to layer."""
    space = spaces.build(space_name, families.describe(model), model)
    draw = torch.Generator().manual_seed(0)
    scores = {group.name: torch.rand(group.size, generator=draw) for group in space.groups}
    return Plan.from_masks(allocate(scores, space, Budget(keep=keep)), space, {"space": space_name})


def in_own_process(*arguments: str | Path) -> dict[str, Any]:
    """Peak memory and seconds of a command; without arguments, of its imports."""
    command = [sys.executable, "-c", CHILD, *map(str, arguments)]
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    if child.returncode:
        raise SystemExit(f"the command failed:\n{child.stdout}{child.stderr}")
    return json.loads(child.stdout.splitlines()[-1])


def weight_files(folder: Path) -> list[int]:
    """Sizes of the weight files of a folder, in bytes."""
    return [file.stat().st_size for file in sorted(folder.glob("*.safetensors"))]


def environment() -> dict[str, Any]:
    """Machine and versions."""
    names = Path("/proc/cpuinfo").read_text(encoding="utf8").splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next((line.partition(":")[2].strip() for line in names if line.startswith("model name")), platform.machine())
    commit = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "safetensors", "tuneprune")},
        "cpu": f"{cpu}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "commit": commit.stdout.strip() or None,
    }


def measure(scratch: Path, space_name: str, keep: float, layers: int) -> dict[str, Any]:
    """Write the dense model and a plan, run `compress` and `export`, and compare their peaks with the bound."""
    config = LlamaConfig(**SHAPE)
    config.num_hidden_layers = layers
    model = skeleton(config)
    (scratch / "dense").mkdir()
    write_dense(scratch / "dense", model)
    random_plan(model, space_name, keep).save(scratch / "plan")
    imports = in_own_process()
    small = scratch / "small"
    compressed = in_own_process(
        *("compress", scratch / "dense", "--plan", scratch / "plan", "--out", small, "--max-shard-size", "2GB")
    )
    read, written = weight_files(scratch / "dense"), weight_files(small)
    shutil.rmtree(scratch / "dense")
    exported = in_own_process("export", small, "--to", EXPORT, "--out", scratch / "exports", "--no-proof")
    return {
        "imports_bytes": imports["peak_bytes"],
        "compress": {"parameters": model.num_parameters(), "read_bytes": read} | against_bound(compressed, read),
        "export": {"to": EXPORT, "read_bytes": written} | against_bound(exported, written),
    }


def against_bound(found: dict[str, Any], read: list[int]) -> dict[str, Any]:
    """The peak, and the bound that follows from the largest file read."""
    bound = int(1.1 * max(read)) + 10**9
    return {"bound_bytes": bound, **found, "is_within_bound": found["peak_bytes"] <= bound}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="width")
    parser.add_argument("--keep", type=float, default=0.6)
    parser.add_argument("--layers", type=int, default=SHAPE["num_hidden_layers"], help="fewer for a quick try")
    parser.add_argument("--scratch", type=Path, help="parent of the temporary folder")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "streaming.json")
    arguments = parser.parse_args()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
        found = measure(Path(folder), arguments.space, arguments.keep, arguments.layers)
    settings = {"space": arguments.space, "keep": arguments.keep, **SHAPE, "num_hidden_layers": arguments.layers}
    content = {"settings": settings, "environment": environment(), **found}
    arguments.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf8")
    print(f"{arguments.out}, {time.perf_counter() - started:.0f} s in all")


if __name__ == "__main__":
    main()
