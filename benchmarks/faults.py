"""Run the long campaigns that mistreat runs, and write what they found as the tables in docs/faults.md.

`python benchmarks/faults.py [--check] [--keep] [-- arguments of pytest]` also writes benchmarks/results/faults.json,
with the commit of every campaign and the environment of the newest ones. A campaign is a test marked `campaign` that
calls `record` of tests/faults/recorded.py.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "benchmarks" / "results" / "faults.json"
PAGE = ROOT / "docs" / "faults.md"
START, END = "<!-- campaigns -->", "<!-- /campaigns -->"


def gathered(lines: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The campaigns by name, from the lines that their tests recorded."""
    found: dict[str, dict[str, Any]] = {}
    for line in lines:
        known = found.setdefault(
            line["campaign"],
            {key: line[key] for key in ("what", "seed", "counted")} | {"good": {}, "bad": {}, "rows": []},
        )
        known["rows"] += line["rows"]
        for side in ("good", "bad"):
            known[side] = dict(sorted((Counter(known[side]) + Counter(line[side])).items()))
    return found


def tables(record: Mapping[str, Any]) -> str:
    """The table of campaigns, and what the runs were doing when they were killed."""
    lines = ["| campaign | what was done | cases | how they ended | failures |", "|---|---|---|---|---|"]
    for name, found in sorted(record["campaigns"].items()):
        ends = ", ".join(f"{number} {outcome}" for outcome, number in found["good"].items())
        failures = sum(found["bad"].values())
        lines.append(f"| {name} | {found['what']} | {len(found['rows'])} {found['counted']} | {ends} | {failures} |")
    hit = Counter(kill["phase"] for kill in kills(record))
    how = Counter(kill["at"] for kill in kills(record))
    if hit:
        cases = [row["kills"] for found in record["campaigns"].values() for row in found["rows"] if "kills" in row]
        missed = f"{cases.count([])} of {len(cases)} were done before the instant drawn for them, so nothing was killed"
        lines += ["", f"{hit.total()} kills, by what the run was doing: {_listed(hit)}; {missed}.", ""]
        lines += [f"And by instant, drawn by the clock or at a file operation: {_listed(how)}."]
    machine = record["environment"]
    lines += [
        "",
        f"{machine['cpu']}, {machine['threads']} thread each, torch {machine['torch']}, {machine['created']}.",
    ]
    return "\n".join(lines)


def kills(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Every kill of every campaign."""
    return [kill for found in record["campaigns"].values() for row in found["rows"] for kill in row.get("kills", ())]


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in counts.most_common())


def with_tables(page: str, record: Mapping[str, Any]) -> str:
    """The page with the tables between its markers."""
    before, _, rest = page.partition(START)
    _, marker, after = rest.partition(END)
    if not marker:
        raise SystemExit(f"docs/faults.md has no {START} ... {END}.")
    return f"{before}{START}\n{tables(record)}\n{END}{after}"


def environment() -> dict[str, Any]:
    """Machine and versions."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf8").splitlines() if Path("/proc/cpuinfo").exists() else []
    command = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    return {
        "cpu": next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None),
        "cores": os.cpu_count(),
        "threads": 1,
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "safetensors")},
        "commit": subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None,
        "created": time.strftime("%Y-%m-%d"),
    }


def run_campaigns(arguments: list[str]) -> tuple[list[dict[str, Any]], int]:
    """The recorded lines of the campaigns, and the exit status of pytest."""
    with tempfile.TemporaryDirectory() as folder:
        noted = Path(folder, "noted.jsonl")
        command = [sys.executable, "-m", "pytest", "-m", "campaign", "tests", *arguments]
        done = subprocess.run(command, cwd=ROOT, env=os.environ | {"TUNEPRUNE_FAULTS": str(noted)}, check=False)
        lines = noted.read_text(encoding="utf8").splitlines() if noted.exists() else []
        return [json.loads(line) for line in lines], done.returncode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--check", action="store_true", help="run nothing; exit 1 if the page does not match the record"
    )
    parser.add_argument("--keep", action="store_true", help="keep recorded campaigns that did not run this time")
    parser.add_argument("pytest", nargs="*", help="arguments for pytest, after --")
    arguments = parser.parse_args()
    if arguments.check:
        page = PAGE.read_text(encoding="utf8")
        sys.exit(int(with_tables(page, json.loads(RECORD.read_text(encoding="utf8"))) != page))
    started, place = time.monotonic(), environment()
    lines, status = run_campaigns(arguments.pytest)
    fresh = {name: {"commit": place["commit"]} | found for name, found in gathered(lines).items()}
    known = json.loads(RECORD.read_text(encoding="utf8")) if arguments.keep and RECORD.exists() else {"campaigns": {}}
    kept = {name: {"commit": known["environment"]["commit"]} | found for name, found in known["campaigns"].items()}
    record = {
        "environment": place | {"minutes": round((time.monotonic() - started) / 60, 1)},
        "campaigns": kept | fresh,
    }
    RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf8")
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf8"), record), encoding="utf8")
    sys.exit(status)


if __name__ == "__main__":
    main()
