"""What a whole ATP run costs beside plain LoRA of the dense model: step times, the decision, the cut, peak memory.

    python benchmarks/overhead.py runs/embedded_healthcare.yaml --steps 60
    python benchmarks/overhead.py runs/smollm2_medquad.yaml --steps 10

Adds the run file's entry to `benchmarks/results/overhead.json` and prints a table with the targets. Every measurement
has a process of its own, because the peak memory of a process never falls; plain LoRA and the shares to keep take
turns, so that load on the machine slows all of them, and every ratio is to plain LoRA of the same round. The entry is
written after each round. The stages are those of `tuneprune run`, without its evaluation and proof.

The time of a whole tuning is measured for `--steps` steps, and computed for `--control` + `--after` steps: what the
measured run takes beside its steady steps (prior, decision, cut, first steps, checkpoints) once, and every other step
at the median of its phase. `loaded_bytes` is the peak before tuning, libraries included. Use an idle machine: `cpu_s`,
the processor time of the measured tuning, shows whether others got in the way.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TARGETS = {"whole": 0.9, "control": 1.5, "recover": 0.7, "peak_bytes": 1.05}
"""The largest ratios to plain LoRA that we aim at."""
ROWS = {
    "control": "control step",
    "recover": "step after the cut",
    "whole": "whole tuning",
    "peak_bytes": "peak memory",
}
WARM_UP = 2
"""Steps at the start of each phase that its median leaves out, because they allocate memory."""


def measure(run_file: Path, overrides: list[str], *, prunes: bool) -> dict[str, Any]:
    """Seconds of every step by phase, of the decision, the cut and the whole, and peak bytes, in this process."""
    import torch

    from tuneprune import families
    from tuneprune.compress import cut
    from tuneprune.config import load_run_file
    from tuneprune.pipeline.job import prepare
    from tuneprune.pipeline.run import decide, tune_merged
    from tuneprune.system.progress import Progress
    from tuneprune.train.runtime import peak_memory

    def now() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()

    class Clock(Progress):
        """Records the time between two steps, by phase."""

        def __init__(self) -> None:
            self.seconds: dict[str, list[float]] = {}
            self.last = 0.0

        def step(self, metrics: Any) -> None:  # noqa: ANN401
            previous, self.last = self.last, now()
            self.seconds.setdefault(str(metrics["phase"]), []).append(self.last - previous)

    config, clock = load_run_file(run_file, overrides), Clock()
    with tempfile.TemporaryDirectory() as folder:
        job = prepare(config, Path(folder) / "run", resume=False, progress=clock)
        device, after = job.accelerator.device, config.recover or config.tune
        before = peak_memory(device)
        clock.last, started_cpu = now(), time.process_time()
        started = clock.last
        if prunes:
            model, plan, tuner = decide(job)
            at_cut = now()
            small = cut(model, job.architecture, job.space, plan)
            clock.last = now()
            job.seconds["cut_s"] = clock.last - at_cut
            tune_merged(
                job, "recover", small, families.describe_config(small.config), after, job.out / "recover", tuner
            )
        else:
            tune_merged(job, "reference", job.fresh_model(), job.architecture, config.tune, job.out / "reference")
        whole = {"whole_s": now() - started, "cpu_s": time.process_time() - started_cpu}
        job.lock.close()
    parts = {name: job.seconds[name] for name in ("begin_s", "plan_s", "cut_s") if name in job.seconds}
    memory = {"loaded_bytes": before, "peak_bytes": peak_memory(device)}
    return {**whole, "steps_s": clock.seconds, **parts, **memory}


def in_own_process(keep: str | None, arguments: argparse.Namespace) -> dict[str, Any]:
    """`measure` in a fresh process, of plain LoRA if there is no share to keep."""
    overrides = [*arguments.set, f"tune.steps={arguments.steps}", f"tune.checkpoint_every={arguments.steps}"]
    overrides += [] if keep is None else [f"budget.keep={keep}"]
    command = [sys.executable, __file__, str(arguments.run_file), "--child", "lora" if keep is None else "pruned"]
    child = subprocess.run(
        [*command, *(f"--set={one}" for one in overrides)], stdout=subprocess.PIPE, text=True, check=False
    )
    if child.returncode:
        raise SystemExit(f"{arguments.run_file}: {'plain LoRA' if keep is None else f'keep {keep}'} failed, see above.")
    return json.loads(child.stdout.splitlines()[-1])


def spread(numbers: list[float]) -> dict[str, float]:
    """Median and extremes."""
    return {"median": statistics.median(numbers), "low": min(numbers), "high": max(numbers)}


def step_medians(measured: dict[str, Any]) -> dict[str, float]:
    """The median step time of one measurement, by phase."""
    return {phase: statistics.median(steps[WARM_UP:] or steps) for phase, steps in measured["steps_s"].items()}


def computed_whole(measured: dict[str, Any], steps: dict[str, int]) -> float:
    """Seconds of a whole tuning with these numbers of steps by phase, from a measurement with fewer or more."""
    medians = step_medians(measured)
    return measured["whole_s"] + sum(
        (steps[phase] - len(measured["steps_s"][phase])) * median for phase, median in medians.items()
    )


def figures(measured: dict[str, Any], steps: dict[str, int]) -> dict[str, float]:
    """What one measurement is compared by: seconds of a step by phase and of the whole, and bytes."""
    once = {name: measured[name] for name in ("begin_s", "plan_s", "cut_s") if name in measured}
    memory = {name: measured[name] for name in ("loaded_bytes", "peak_bytes")}
    whole = {"whole": computed_whole(measured, steps), "measured_whole": measured["whole_s"]}
    return {**step_medians(measured), **whole, "cpu_s": measured["cpu_s"], **once, **memory}


def summarize(rounds: dict[str, list[dict[str, Any]]], control: int, after: int) -> dict[str, Any]:
    """Figures of plain LoRA and of every share to keep, and their ratios to plain LoRA in the same round.

    Args:
        control: control steps of the whole tuning that is computed.
        after: its steps after the cut; plain LoRA takes as many as both.
    """
    steps = {"tune": control + after, "control": control, "recover": after}
    found = {name: [figures(one, steps) for one in measured] for name, measured in rounds.items()}
    result: dict[str, Any] = {}
    for name, measured in found.items():
        result[name] = {key: spread([one[key] for one in measured]) for key in measured[0]}
        if name == "lora":
            continue
        ratios = {}
        for key in measured[0]:
            base = key if key in found["lora"][0] else "whole" if key.endswith("_s") else "tune"
            ratios[key] = spread([one[key] / plain[base] for one, plain in zip(measured, found["lora"], strict=True)])
        result[name]["over_lora"] = ratios
    return result


def table(name: str, entry: dict[str, Any]) -> str:
    """The ratios of one run file to plain LoRA, with the targets and whether they are met."""
    pruned = {key: value["over_lora"] for key, value in entry["figures"].items() if key != "lora"}
    settings = entry["settings"]
    steps = f"{settings['control']} control steps + {settings['after']} after the cut"
    lines = [f"{name}: ratios to plain LoRA, median of {entry['rounds_done']} rounds (lowest to highest)", ""]
    lines += [f"| | {' | '.join(pruned)} | target |", f"|---|{'---|' * (len(pruned) + 1)}"]
    for key, title in ROWS.items():
        title = f"{title}, computed: {steps}" if key == "whole" else title
        cells = []
        for ratios in pruned.values():
            found = ratios.get(key)  # a method that is cut at the end has no step after the cut
            met = "" if found is None or found["median"] <= TARGETS[key] else ", missed"
            cells.append(f"{found['median']:.2f} ({found['low']:.2f} to {found['high']:.2f}){met}" if found else "-")
        lines.append(f"| {title} | {' | '.join(cells)} | at most {TARGETS[key]} |")
    return "\n".join(lines)


def write(path: Path, name: str, entry: dict[str, Any]) -> None:
    """Add an entry to the record, or replace the one of the same run file."""
    content = json.loads(path.read_text(encoding="utf8")) if path.exists() else {}
    runs = content.get("runs", {}) | {name: entry}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"targets": TARGETS, "runs": runs}, indent=1) + "\n", encoding="utf8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_file", type=Path)
    parser.add_argument("--steps", type=int, default=60, help="steps that are measured; ATP controls half, at most 30")
    parser.add_argument("--control", type=int, default=30, help="control steps of the whole tuning that is computed")
    parser.add_argument("--after", type=int, default=270, help="its steps after the cut")
    parser.add_argument("--keep", default="0.8,0.6", help="shares of all parameters, comma separated")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], help="key.path=value, for every measurement")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "overhead.json")
    parser.add_argument("--child", choices=("lora", "pruned"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(measure(arguments.run_file, arguments.set, prunes=arguments.child == "pruned")))
        return
    from accelerate import Accelerator

    from tuneprune.system.environment import environment

    machine = environment(Accelerator()) | {"load_average_before": os.getloadavg()[0]}
    settings = {key: value for key, value in vars(arguments).items() if key not in ("child", "out")}
    settings["run_file"] = arguments.run_file.name
    keeps = {"lora": None} | {f"keep {keep}": keep for keep in arguments.keep.split(",")}
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in keeps}
    entry: dict[str, Any] = {}
    for index in range(arguments.rounds):
        for name in keeps if index % 2 == 0 else reversed(keeps):  # so that none always runs last
            rounds[name].append(in_own_process(keeps[name], arguments))
            print(f"round {index + 1}: {name}: {rounds[name][-1]['whole_s']:.1f} s", file=sys.stderr)
        entry = {"settings": settings, "hardware": machine, "rounds_done": index + 1}
        entry |= {"figures": summarize(rounds, arguments.control, arguments.after), "rounds": rounds}
        write(arguments.out, arguments.run_file.stem, entry)
    print(table(arguments.run_file.stem, entry))


if __name__ == "__main__":
    main()
