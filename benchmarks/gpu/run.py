"""Everything that waits for a GPU, in one command of under ten minutes on a machine without a network.

    python benchmarks/gpu/run.py --out DIR
    python benchmarks/gpu/run.py --out DIR --rehearse   (the same with little work, on any machine)

README.md next to this file says what it runs and writes. Every part is a process with a deadline: one that fails or
takes too long leaves what it has, its error goes into `summary.json`, and the next part starts.
"""

import argparse
import importlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SEEDS, METHODS = "0,1,2", "atp,flap,llm_pruner,slicegpt"
PACKAGES = ("torch", "transformers", "accelerate", "peft", "datasets", "pydantic", "numpy", "gguf", "tuneprune")
GRACE = 20.0
"""Seconds for a process that is told to stop, to save its state."""
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONUNBUFFERED": "1",
}
Watch = Callable[[], None]


@dataclass(frozen=True)
class Part:
    """One part of the work: a command, and when it has to be over."""

    name: str
    command: list[str]
    until: float
    """Share of all minutes by which it has to be over; what it does not need goes to those after it."""
    watch: Watch = lambda: None
    """Called again and again while it runs, and at its end."""


def perform(part: Part, log: Path, started: float, seconds: float) -> dict[str, Any]:
    """Run a part to its end or its deadline, add its output to `log`, and say how it went.

    Args:
        started: when the whole began, by `time.monotonic`.
        seconds: how long the whole may take.
    """
    begun, deadline = time.monotonic(), started + part.until * seconds - GRACE
    problem = ""
    with log.open("a", encoding="utf8") as stream:
        print(f"\n== {part.name}", file=stream, flush=True)
        process = subprocess.Popen(
            part.command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, start_new_session=True
        )
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.5)
            problem = watched(part) or problem
        status = process.poll()
        stop(process)
    problem = watched(part) or problem
    found = {"outcome": "stopped" if status is None else "failed" if status else "done"}
    found |= {"seconds": round(time.monotonic() - begun, 1), "command": part.command}
    if status:
        problem = f"exit status {status}: {last_line(log)}"
    return found | ({"error": problem} if problem else {})


def watched(part: Part) -> str:
    """What is wrong with a part's `watch`, which must not end the part."""
    try:
        part.watch()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def stop(process: subprocess.Popen[bytes]) -> None:
    """Let a process save its state, and end all that it started."""
    with suppress(subprocess.TimeoutExpired):
        process.terminate()  # nothing, if it has ended
        process.wait(GRACE)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "no output")


def unpack(folder: Path) -> Path | None:
    """Join and unpack what collect.py wrote to `folder`; None if there is nothing.

    Raises:
        SystemExit: a part that is missing.
    """
    parts = list(folder.glob("load.tar.xz.*-of-*"))
    if not parts:
        return None
    count = parts[0].name.rpartition("-")[2]
    ordered = [folder / f"load.tar.xz.{index + 1}-of-{count}" for index in range(int(count))]
    missing = [part.name for part in ordered if not part.is_file()]
    if missing:
        raise SystemExit(f"{', '.join(missing)} of benchmarks/gpu/collect.py is missing in {folder}.")
    whole, load = folder / "load.tar.xz", folder / "load"
    with whole.open("wb") as joined:
        for part in ordered:
            with part.open("rb") as stream:
                shutil.copyfileobj(stream, joined)
    with tarfile.open(whole) as archive:
        archive.extractall(load, filter="data")
    whole.unlink()
    return load


def set_up(load: Path | None) -> list[list[str]]:
    """Set the environment of all parts; the commands that install the wheels and convert the model."""
    os.environ |= ENVIRONMENT
    paths, commands = [ROOT / "src", ROOT / "benchmarks"], []
    if load is not None:
        site, wheels = load / "site", [str(wheel) for wheel in sorted((load / "wheels").glob("*.whl"))]
        pip = ["-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile", "--upgrade"]
        commands.append([sys.executable, *pip, "--target", str(site), *wheels])
        commands.append([sys.executable, "benchmarks/smollm2.py", str(load / "models")])
        os.environ["TUNEPRUNE_DATA"] = str(load / "data")
        paths.append(site)
    others = [os.environ[name] for name in ("PYTHONPATH",) if name in os.environ]
    os.environ["PYTHONPATH"] = os.pathsep.join([*map(str, paths), *others])  # programs of the proof inherit it too
    sys.path[:0] = [str(path) for path in paths]
    return commands


def keep_comparison(runs: Path, out: Path) -> Watch:
    """Writes `out/comparison.json` whenever another run is complete, as a stopped comparison has no record."""
    written = 0

    def watch() -> None:
        nonlocal written
        complete = len([*runs.glob("*/record.json"), *runs.glob("*/reference.json")])
        if complete == written:
            return
        importlib.invalidate_caches()  # the packages were installed after this process had started
        import comparison

        from tuneprune.pipeline import comparison_runs
        from tuneprune.report import ComparisonRecord

        records, written = comparison_runs.finished(runs), complete
        if records:
            found = ComparisonRecord.of(records, comparison_runs.references(runs), METHODS.partition(",")[0], {})
            (out / "comparison.json").write_text(comparison.compact(found), encoding="utf8")

    return watch


def logs_of_failures(runs: Path) -> str:
    """The ends of the logs of runs that are not complete."""
    results = ("record.json", "reference.json")
    logs = [
        path for path in sorted(runs.glob("logs/*.txt")) if not any((runs / path.stem / n).exists() for n in results)
    ]
    return "".join(f"\n== {path.stem}\n{path.read_text(encoding='utf8', errors='replace')[-4000:]}" for path in logs)


def parts(arguments: argparse.Namespace, load: Path | None) -> list[Part]:
    """The work, most valuable first."""
    run_file, model, python = "runs/smollm2_medquad.yaml", load and load / "models" / "smollm2", sys.executable
    steps = ["tune.batch_size=16", "tune.steps=300", "tune.checkpoint_every=300"]
    evaluation = ["speed=false", "evaluate.tasks.0.limit=200", "evaluate.tasks.1.limit=40"]
    seeds, jobs, measured = SEEDS, str(min(6, os.cpu_count() or 1)), ["--steps", "60", "--rounds", "3"]
    large = ["tune.batch_size=64"]  # a small batch of a small model leaves most of a large GPU idle
    if arguments.rehearse:
        run_file, model = "runs/quickstart.yaml", None
        steps, evaluation = ["tune.steps=4", "tune.batch_size=2"], ["speed=false", "evaluate.limit=2"]
        seeds, jobs, measured, large = "0", "1", ["--steps", "4", "--rounds", "1"], ["tune.batch_size=2"]
    own = [*([] if model is None else [f"model={model}"]), *arguments.set]

    def settings(*values: str) -> list[str]:
        return [f"--set={value}" for value in (*values, *own)]

    runs, out = arguments.work / "runs", arguments.out
    compare = [python, "-m", "tuneprune", "compare", run_file, "--keep", "0.6", "--methods", METHODS, "--seeds", seeds]
    overhead = [python, "benchmarks/overhead.py", run_file, "--keep", "0.6", "--out", str(out / "overhead.json")]
    marked = [str(path) for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text("utf8")]
    tests = [python, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", "-rs", *marked]  # the others take a minute
    return [
        Part(
            "compare",
            [*compare, "--jobs", jobs, "--out", str(runs), *settings(*steps, *evaluation)],
            until=0.64,
            watch=keep_comparison(runs, out),
        ),
        Part("overhead", [*overhead, *measured, *settings(*large)], until=0.86),
        Part("tests", tests, until=1.0),
    ]


def hardware() -> dict[str, Any]:
    """The machine, and the GPU as its driver names it."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        gpu = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        gpu = None
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"gpu": gpu, "cores": os.cpu_count(), "memory_bytes": memory, "platform": platform.platform()}


def versions() -> dict[str, str | None]:
    """Python, and the packages as the parts find them."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def commit(load: Path | None) -> str | None:
    """The commit of this checkout; of a copy without its history, the one that was collected for it."""
    with suppress(OSError):
        command = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
        found = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
        if found:
            return found
    return load and json.loads((load / "collected.json").read_text(encoding="utf8"))["commit"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the results: a few small files")
    parser.add_argument("--load", type=Path, default=ROOT / "out" / "gpu", help="what collect.py wrote")
    parser.add_argument("--work", type=Path, default=ROOT / "out" / "gpu" / "work", help="folder for runs and models")
    parser.add_argument("--minutes", type=float, default=9.5, help="how long all of it may take")
    parser.add_argument("--rehearse", action="store_true", help="a few steps of the embedded base")
    parser.add_argument("--set", action="append", default=[], help="key.path=value, for every run")
    arguments = parser.parse_args()
    arguments.out, arguments.work = arguments.out.resolve(), arguments.work.resolve()
    started, seconds = time.monotonic(), arguments.minutes * 60
    arguments.out.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(arguments.work, ignore_errors=True)
    arguments.work.mkdir(parents=True)
    load = unpack(arguments.load.resolve())
    if load is None and not arguments.rehearse:
        raise SystemExit(f"{arguments.load} has no files of benchmarks/gpu/collect.py, which fetches model and data.")
    commands = set_up(load)
    work = [Part(f"set-up {index + 1}", command, until=0.25) for index, command in enumerate(commands)]
    log = arguments.out / "log.txt"
    log.write_text("", encoding="utf8")
    summary: dict[str, Any] = {"rehearsal": arguments.rehearse, "commit": commit(load), "hardware": hardware()}
    summary["parts"] = {}
    for part in [*work, *parts(arguments, load)]:
        summary["parts"][part.name] = perform(part, log, started, seconds)
        summary |= {"versions": versions(), "seconds": round(time.monotonic() - started, 1)}
        (arguments.out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf8")
        print(part.name, json.dumps(summary["parts"][part.name]), flush=True)
    with log.open("a", encoding="utf8") as stream:
        stream.write(logs_of_failures(arguments.work / "runs"))
    sys.exit(any(found["outcome"] != "done" for found in summary["parts"].values()))


if __name__ == "__main__":
    main()
