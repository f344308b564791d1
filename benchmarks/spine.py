"""Run the shipped run files on every space and keep their records: the single runs of docs/results.md.

    python benchmarks/spine.py runs/embedded_healthcare.yaml runs/embedded_legal.yaml --out out/spine

Each run's `record.json` and `proof.json` are copied to `benchmarks/results/<run>_<method>_<space>/`. The dense model
and the dense model tuned in the same way are evaluated once for each run file. The same command continues a run that
was stopped.
"""

import argparse
import shutil
from pathlib import Path

import transformers
from rich.console import Console

from tuneprune.cli.progress_bars import ConsoleProgress
from tuneprune.config import load_run_file
from tuneprune.pipeline.comparison_runs import entry
from tuneprune.pipeline.run import run
from tuneprune.report import RunRecord, rich_table
from tuneprune.structure.spaces import SPACES

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_files", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=Path("out/spine"))
    parser.add_argument("--spaces", default=",".join(SPACES))
    parser.add_argument("--methods", default="atp")
    parser.add_argument("--set", action="append", default=[], help="key.path=value, for every run")
    arguments = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    console = Console(stderr=True)
    for run_file in arguments.run_files:
        records: list[RunRecord] = []
        for method in arguments.methods.split(","):
            for space in arguments.spaces.split(","):
                console.rule(f"{run_file.stem}, {method}, {space}")
                config = load_run_file(run_file, [*arguments.set, f"space={space}"])
                config = config.model_copy(update={"method": entry(method, config).method})
                folder = arguments.out / f"{run_file.stem}_{method}_{space}"
                resume = (folder / "config.yaml").exists()
                known = records[0].scores if records else None
                with ConsoleProgress(console) as progress:
                    records.append(run(config, folder, resume=resume, progress=progress, reference=known))
                kept = RESULTS / folder.name
                kept.mkdir(parents=True, exist_ok=True)
                for name in ("record.json", "proof.json"):
                    shutil.copy(folder / name, kept / name)
        console.print(rich_table(records))


if __name__ == "__main__":
    main()
