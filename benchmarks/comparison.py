"""Compare all methods on the shipped suites and keep the results: the evidence behind docs/results.md.

    python benchmarks/comparison.py runs/compare_healthcare.yaml runs/compare_legal.yaml --jobs 2

The runs of each run file are in `<out>/<suite>`; its `comparison.json`, with one cell on each line, is copied to
`benchmarks/results/comparison/<suite>.json`. The same command continues a comparison that was stopped; with more
methods, budgets or seeds, it adds them. By default all registered methods are compared with the first, ATP.
Exits with status 1 if runs failed.
"""

import argparse
import json
import sys
from pathlib import Path

import transformers
from rich.console import Console

from tuneprune import methods
from tuneprune.cli.progress_bars import ConsoleProgress
from tuneprune.config import load_run_file
from tuneprune.pipeline.compare import compare
from tuneprune.report import ComparisonRecord, comparison_rich
from tuneprune.system.signals import on_signals, stop_resumable
from tuneprune.system.storage import write_text

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "comparison"
SHIPPED = ("runs/compare_healthcare.yaml", "runs/compare_legal.yaml")
AGAINST = "atp"


def all_methods() -> str:
    """All registered methods, the reference method first."""
    return ",".join([AGAINST, *(name for name in methods.registry() if name != AGAINST)])


def compact(comparison: ComparisonRecord) -> str:
    """The record as JSON with one line for every cell and row, so that diffs are small."""
    content = comparison.model_dump(mode="json", by_alias=True, exclude_none=True)
    parts = []
    for key, value in content.items():
        if isinstance(value, list) and value:
            lines = ",\n".join(json.dumps(item) for item in value)
            parts.append(f"{json.dumps(key)}: [\n{lines}\n]")
        else:
            parts.append(f"{json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_files", type=Path, nargs="*", default=[ROOT / name for name in SHIPPED])
    parser.add_argument("--methods", default=all_methods())
    parser.add_argument("--keep", default="0.8,0.6,0.5")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], help="key.path=value, for every run")
    parser.add_argument("--out", type=Path, default=Path("out/comparison"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    console, failed = Console(stderr=True), {}
    for run_file in arguments.run_files:
        suite = run_file.stem.removeprefix("compare_")
        folder = arguments.out / suite
        console.rule(suite)
        with on_signals(stop_resumable), ConsoleProgress(console) as progress:
            outcome = compare(
                load_run_file(run_file, arguments.set),
                arguments.methods.split(","),
                folder,
                keeps=[float(keep) for keep in arguments.keep.split(",")],
                seeds=[int(seed) for seed in arguments.seeds.split(",")],
                jobs=arguments.jobs,
                resume=(folder / "config.yaml").exists(),
                progress=progress,
            )
        failed |= outcome.failed
        if outcome.comparison is not None:
            write_text(arguments.results / f"{suite}.json", compact(outcome.comparison))
            for table in comparison_rich(outcome.comparison):
                console.print(table)
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
