"""Check that a seed determines the result: run every method twice, in processes as different as one machine allows.

    python benchmarks/determinism.py --model embedded/base

Writes `benchmarks/results/determinism.json`. The first comparison runs its cells one at a time and computes every
score; the second one has another hash seed, working directory, folder and order of methods, runs two cells at a time,
and reuses scores of another budget. Files of `plan/` and `model/` are compared by their bytes, except the card
`model/README.md`, which contains measured times. The first comparison also has a second seed, whose files must differ.
All processes have one thread, because sums may differ in their last bits between numbers of threads.
"""

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("clinic_text",)
KEEP, OTHER_KEEP = 0.6, 0.8


def digests(cell: Path) -> dict[str, str]:
    """The hash of every file that must be reproducible, and of the scores."""
    files = [path for name in ("plan", "model") for path in sorted((cell / name).rglob("*")) if path.is_file()]
    found = {
        str(path.relative_to(cell)): hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        for path in files
        if path.name != "README.md"
    }
    scores = json.loads((cell / "record.json").read_text(encoding="utf8"))["scores"]
    return found | {"scores": hashlib.sha256(json.dumps(scores, sort_keys=True).encode()).hexdigest()[:16]}


def run_file(folder: Path, model: str, steps: int) -> Path:
    """A short comparison on the clinic data."""
    content = {
        "model": str(Path(model).resolve()),
        "space": "width",
        "method": "random",  # replaced by --methods
        "data": {"train": [{"source": name} for name in SOURCES]},
        "tune": {
            "steps": steps,
            "batch_size": 4,
            "max_length": 64,
            "log_every": 1,
            "lora": {"rank": 4, "dropout": 0.1},
        },
        "evaluate": {"suite": "clinic", "limit": 4},
        "reference": False,
        "speed": False,
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf8")
    return path


def compare(run: Path, methods: list[str], out: Path, *, hash_seed: int, cwd: Path, more: list[str]) -> None:
    """Run one comparison by the command line."""
    command = [sys.executable, "-m", "tuneprune", "compare", str(run), "--methods", ",".join(methods)]
    environment = os.environ | {"PYTHONHASHSEED": str(hash_seed), "OMP_NUM_THREADS": "1"}
    cwd.mkdir()
    subprocess.run([*command, "--out", str(out), *more], cwd=cwd, env=environment, check=True)


def outcome(name: str, first: Path, second: Path, other_seed: Path) -> dict[str, Any]:
    """The result of one method: which files differ."""
    one, two, other = (digests(cell) for cell in (first, second, other_seed))
    unequal = sorted(file for file in one.keys() | two.keys() if one.get(file) != two.get(file))
    differing = sorted(file for file in one if one[file] != other.get(file))
    return {"method": name, "files": len(one), "unequal": unequal, "differ_with_another_seed": differing}


def main() -> None:
    """Both comparisons, then the table."""
    from tuneprune.methods import registry

    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default=str(ROOT / "embedded" / "base"))
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--methods", default=",".join(registry()))
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "determinism.json")
    arguments = parser.parse_args()
    methods = arguments.methods.split(",")
    with tempfile.TemporaryDirectory(prefix="tuneprune-determinism-") as scratch:
        folder = Path(scratch)
        run = run_file(folder, arguments.model, arguments.steps)
        first, second = folder / "one", folder / "elsewhere" / "two"
        alone = ["--keep", f"{KEEP}", "--seeds", "0,1"]
        compare(run, methods, first, hash_seed=1, cwd=folder / "here", more=alone)
        beside = ["--keep", f"{OTHER_KEEP},{KEEP}", "--seeds", "0", "--jobs", "2"]
        compare(run, methods[::-1], second, hash_seed=2, cwd=folder / "there", more=beside)
        cells = {name: f"{name}-keep{KEEP:g}-seed" for name in methods}
        rows = [outcome(n, first / f"{c}0", second / f"{c}0", first / f"{c}1") for n, c in cells.items()]
    content = {
        "command": f"python benchmarks/determinism.py --steps {arguments.steps} --methods {arguments.methods}",
        "environment": environment(),
        "equal": sum(not row["unequal"] for row in rows),
        "methods": len(rows),
        "rows": rows,
    }
    arguments.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf8")
    for row in rows:
        sys.stdout.write(
            f"{row['method']}: {row['unequal'] or 'equal'}; {len(row['differ_with_another_seed'])} differ\n"
        )


def environment() -> dict[str, Any]:
    """Machine and versions."""
    git = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    lines = Path("/proc/cpuinfo").read_text(encoding="utf8").splitlines()
    cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    return {
        "cpu": cpu,
        "threads": 1,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "peft")},
        "commit": subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip() or None,
    }


if __name__ == "__main__":
    main()
