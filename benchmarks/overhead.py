"""The overhead of ATP over plain LoRA: step time and peak memory on the clinic data, measured in turns.

    python benchmarks/overhead.py --model embedded/base

Writes `benchmarks/results/overhead.json`. Every variant of every round runs in its own process, because the peak
memory of a process never falls; variants take turns, so that load on the machine slows all of them. The training loop
and the method are those of `tuneprune run`. `run_s` includes the prior that the first control step computes, which
matters less in longer runs; `loaded_bytes` is the peak before tuning, libraries included.
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
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
VARIANTS = ("lora", "atp_width", "atp_head_dim", "atp_disp")
SOURCES = ("clinic_nli", "clinic_qa", "clinic_summary", "clinic_text")
WARM_UP = 2
"""Steps at the start of each phase that are not counted, because they allocate memory."""


def measure(variant: str, model: str, steps: int, batch_size: int) -> dict[str, Any]:
    """Seconds of every step by phase, and peak bytes, of one variant in this process."""
    from tuneprune.calibration.subject import Subject
    from tuneprune.config import RunConfig
    from tuneprune.methods.base import Search
    from tuneprune.pipeline.job import prepare
    from tuneprune.system.progress import Progress
    from tuneprune.train import inject_lora
    from tuneprune.train.runtime import peak_memory

    class Clock(Progress):
        """Records the time between two steps, by phase."""

        def __init__(self) -> None:
            self.seconds: dict[str, list[float]] = {}
            self.last = 0.0

        def step(self, metrics: Any) -> None:  # noqa: ANN401
            now = time.perf_counter()
            self.seconds.setdefault(str(metrics["phase"]), []).append(now - self.last)
            self.last = now

    method, _, space = variant.partition("_")
    content = {
        "model": model,
        "space": space or "width",
        "method": "random" if method == "lora" else method,  # a name is required, but plain LoRA does not search
        "data": {"train": [{"source": name} for name in SOURCES]},
        "tune": {"steps": steps, "batch_size": batch_size, "max_length": 128, "checkpoint_every": 10**6},
        "evaluate": {"suite": "clinic", "limit": 1},
    }
    config, clock = RunConfig.model_validate(content), Clock()
    with tempfile.TemporaryDirectory() as folder:
        job = prepare(config, Path(folder) / "run", resume=False, progress=clock)
        loaded = job.fresh_model()
        before = peak_memory(job.accelerator.device)
        inject_lora(loaded, job.architecture, config.tune.lora, config.seed)
        tuner = job.tuner(loaded, config.tune, job.out)
        started = time.perf_counter()
        search = Search()
        if method != "lora":
            subject = Subject(
                loaded, job.architecture, job.space, tuner.runtime, tuner.next_calibration, steps, config.seed
            )
            search = config.method.begin(subject, config.budget)
        clock.last = time.perf_counter()
        tuner.run(search)
        seconds = time.perf_counter() - started
    peak = peak_memory(job.accelerator.device)
    return {"run_s": seconds, "steps_s": clock.seconds, "loaded_bytes": before, "peak_bytes": peak}


def in_own_process(variant: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """`measure` in a fresh process."""
    command = [sys.executable, __file__, "--child", variant, "--model", arguments.model]
    command += ["--steps", str(arguments.steps), "--batch-size", str(arguments.batch_size)]
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    if child.returncode:
        raise SystemExit(f"{variant} failed:\n{child.stderr}")
    return json.loads(child.stdout.splitlines()[-1])


def spread(numbers: list[float]) -> dict[str, float]:
    """Median and extremes."""
    return {"median": statistics.median(numbers), "low": min(numbers), "high": max(numbers)}


def phase_medians(rounds: list[dict[str, Any]]) -> dict[str, list[float]]:
    """The median step time of every round, by phase."""
    medians: dict[str, list[float]] = {}
    for one in rounds:
        for phase, seconds in one["steps_s"].items():
            medians.setdefault(phase, []).append(statistics.median(seconds[WARM_UP:] or seconds))
    return medians


def summarize(rounds: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Step time by phase, duration and memory of every variant, and ratios to plain LoRA in the same round."""
    plain = rounds["lora"]
    base_step = phase_medians(plain)["tune"]
    result: dict[str, Any] = {}
    for variant, measured in rounds.items():
        row: dict[str, Any] = {
            "step_s": {phase: spread(values) for phase, values in phase_medians(measured).items()},
            "run_s": spread([one["run_s"] for one in measured]),
            "peak_bytes": spread([one["peak_bytes"] for one in measured]),
            "loaded_bytes": spread([one["loaded_bytes"] for one in measured]),
        }
        if variant != "lora":
            row["over_lora"] = {
                "step": {
                    phase: spread([value / base for value, base in zip(values, base_step, strict=True)])
                    for phase, values in phase_medians(measured).items()
                },
                "run": spread([one["run_s"] / base["run_s"] for one, base in zip(measured, plain, strict=True)]),
                "peak_bytes": spread(
                    [one["peak_bytes"] / base["peak_bytes"] for one, base in zip(measured, plain, strict=True)]
                ),
            }
        result[variant] = row
    return result


def hardware() -> dict[str, Any]:
    """Machine and versions."""
    import torch

    names = Path("/proc/cpuinfo").read_text(encoding="utf8").splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next((line.partition(":")[2].strip() for line in names if line.startswith("model name")), platform.machine())
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "load_average_before": os.getloadavg()[0],
        **{name: version(name) for name in ("torch", "transformers", "peft", "tuneprune")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded/base")
    parser.add_argument("--steps", type=int, default=48, help="steps of one run; ATP decides in half, at most 30")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--variants", default=",".join(VARIANTS[:2]), help=f"in addition to lora: {', '.join(VARIANTS[1:])}"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "overhead.json")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(measure(arguments.child, arguments.model, arguments.steps, arguments.batch_size)))
        return
    machine = hardware()
    variants = list(dict.fromkeys(["lora", *arguments.variants.split(",")]))
    rounds: dict[str, list[dict[str, Any]]] = {variant: [] for variant in variants}
    for index in range(arguments.rounds):
        for variant in variants if index % 2 == 0 else reversed(variants):  # so that no variant always runs last
            rounds[variant].append(in_own_process(variant, arguments))
            print(f"round {index + 1}: {variant}: {rounds[variant][-1]['run_s']:.1f} s", file=sys.stderr)
    settings = {key: value for key, value in vars(arguments).items() if key not in ("child", "out")}
    content = {"settings": settings, "hardware": machine, "variants": summarize(rounds), "rounds": rounds}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf8")
    print(arguments.out)


if __name__ == "__main__":
    main()
