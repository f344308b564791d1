"""Fuzz the untrusted files that tuneprune reads, and record the results.

`python benchmarks/fuzz.py [--examples N] [--seed S] [--only NAME]`; the record is benchmarks/results/fuzz.json. The
cases are those of tests/fuzz, of which CI runs a few: valid files with changed structure or damaged bytes, read by the
command that a user would use. A case fails if its error is not one of tuneprune's messages, if it takes more than 20
seconds of CPU time, or if memory grows by more than a gibibyte.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "benchmarks" / "results" / "fuzz.json"
sys.path.insert(0, str(ROOT / "tests"))
os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

import pytest  # noqa: E402
import torch  # noqa: E402
from fuzz import campaign  # noqa: E402
from fuzz.targets import Target, prepared  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=500, help="number of cases for each kind of file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="fuzz one kind of file, and keep the results of the others")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = json.loads(RECORD.read_text())["targets"] if arguments.only and RECORD.exists() else {}
    content = {"schema": 1, "environment": environment(), "seed": arguments.seed, "targets": found}
    with tempfile.TemporaryDirectory(prefix="tuneprune-fuzz-") as scratch:
        for name, target in prepared(Path(scratch)).items():
            if arguments.only in (None, name):
                found[name] = fuzzed(target, Path(scratch), arguments)
                print(name, found[name], flush=True)
                RECORD.write_text(json.dumps(content, indent=1) + "\n", encoding="utf8")
    if any(one["failure"] for one in found.values()):
        sys.exit("fuzz: some cases failed")


def fuzzed(target: Target, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Fuzz one kind of file: how many cases were read, how many refused, and the smallest that failed."""
    started, failure = time.perf_counter(), None
    counts: dict[str, int] = {}
    with pytest.MonkeyPatch.context() as patch:
        try:
            campaign.run(target, folder, campaign.command_line(patch), arguments.examples, arguments.seed, counts)
        except (Exception, campaign.Hang) as error:
            failure = f"{type(error).__name__}: {error}"[:400]
    cases = {name: counts.get(name, 0) for name in ("accepted", "refused")}
    seconds = round(time.perf_counter() - started, 1)
    return {"command": target.command[0], **cases, "failure": failure, "seconds": seconds}


def environment() -> dict[str, Any]:
    """Machine and versions."""
    packages = ("torch", "transformers", "peft", "safetensors", "pydantic", "pyyaml", "hypothesis")
    commit = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "platform": platform.system(),
        "cpus": os.cpu_count(),
        "threads": 1,
        "commit": commit.stdout.strip(),
    }


if __name__ == "__main__":
    main()
