"""Run the export tests and write their results to docs/exports/matrix.md.

`python benchmarks/export_matrix.py [--check] [--keep]`; the record is benchmarks/results/export_matrix.jsonl.
Results of vLLM, which needs its own environment, are those of benchmarks/vllm_check.py in benchmarks/results/vllm.json.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "benchmarks" / "results" / "export_matrix.jsonl"
PAGE = ROOT / "docs" / "exports" / "matrix.md"
VLLM = ROOT / "benchmarks" / "results" / "vllm.json"
TESTS = ("tests/exports", "tests/laws/test_reload.py", "tests/unit/export/test_deci.py")
FIELDS = ("target", "family", "space", "layout", "outcome", "why")
SHORT = {"run": "run", "structure": "checked", "impossible": "–"}
ORDER = tuple(SHORT)
"""Best first: where several tests decide a case, the best outcome counts."""

Case = Mapping[str, str]

INTRODUCTION = """\
# Exports that were tried

Written by `make test-exports`, from [export_matrix.jsonl](../../benchmarks/results/export_matrix.jsonl). Do not edit.

Each cell is one small random model of the family, pruned in that space by a plan that removes some of everything,
converted, and run in the target's own runtime: `run`; `checked` where only names and shapes of tensors could be
checked; `–` where the target refuses it, with the message that the user gets (n: a width of that model). *uniform*:
equal widths in all layers; *ragged*: widths that differ by layer (`depth` and `residual` give equal widths either
way). `llama3` has LLaMA 3's RoPE and tied embeddings, `llama_mha_biased` one KV head per query head, and biases. An
empty cell was not tried. vLLM needs an environment of its own (`benchmarks/vllm_check.py`); GPUs were not tried.
"""


def best(cases: Iterable[Case]) -> list[dict[str, str]]:
    """Each case once, with its best outcome, sorted."""
    found: dict[tuple[str, ...], dict[str, str]] = {}
    for case in cases:
        key = tuple(case[name] for name in FIELDS[:4])
        if key not in found or ORDER.index(case["outcome"]) < ORDER.index(found[key]["outcome"]):
            found[key] = {name: case[name] for name in FIELDS}
    return [found[key] for key in sorted(found)]


def tables(cases: Iterable[Case]) -> str:
    """One table per space: families down, targets and layouts across, and notes below it."""
    cases = best(cases)
    targets = sorted({case["target"] for case in cases})
    parts: list[str] = []
    for space in sorted({case["space"] for case in cases}):
        here = [case for case in cases if case["space"] == space]
        columns = [(target, layout) for target in targets for layout in ("uniform", "ragged")]
        columns = [column for column in columns if any((case["target"], case["layout"]) == column for case in here)]
        reasons: dict[str, int] = {}
        lines = [f"### `{space}`", "", _row(["family", *(f"{target}, {layout}" for target, layout in columns)])]
        lines.append(_row(["---"] * (len(columns) + 1)))
        for family in sorted({case["family"] for case in here}):
            found = {(case["target"], case["layout"]): case for case in here if case["family"] == family}
            lines.append(_row([family, *(_cell(found.get(column), reasons) for column in columns)]))
        notes = [f"{number}. {reason}" for reason, number in reasons.items()]
        parts += [*lines, *(["", *notes] if notes else []), ""]
    return "\n".join(parts).strip()


def _cell(case: Case | None, reasons: dict[str, int]) -> str:
    if case is None:
        return " "
    mark = SHORT[case["outcome"]]
    if not case["why"]:
        return mark
    return f"{mark} ({reasons.setdefault(case['why'], len(reasons) + 1)})"


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def page(cases: Iterable[Case]) -> str:
    """The whole page."""
    return f"{INTRODUCTION}\n{tables(cases)}\n"


def load(path: Path) -> list[dict[str, str]]:
    """The cases in a record."""
    return [json.loads(line) for line in path.read_text(encoding="utf8").splitlines()]


def run_tests(arguments: list[str]) -> list[dict[str, str]]:
    """Run the export tests, which must pass, and return the cases that they decide."""
    found = RECORD.with_suffix(".partial")
    found.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-m", "not campaign", *TESTS, *arguments]
    subprocess.run(command, cwd=ROOT, env=os.environ | {"TUNEPRUNE_EXPORT_MATRIX": str(found)}, check=True)
    cases = load(found) if found.exists() else []
    found.unlink(missing_ok=True)
    return cases


def vllm_cases() -> list[dict[str, str]]:
    """The results of vLLM as cases: target `vllm` for Hugging Face folders, and `deci`."""
    cases = []
    for row in json.loads(VLLM.read_text(encoding="utf8"))["rows"]:
        layout, _, space = row["case"].partition(",")[0].rpartition(" ")
        if row["family"] == "embedded":
            continue
        ran = row["outcome"] == "run"
        why = "" if ran else "vLLM refuses to load it: layers with a part of the stream, or other key than value sizes"
        if row["target"] == "deci":
            why = "equal numbers of query heads only"
        cases.append(
            {
                "target": "vllm" if row["target"] == "hf" else row["target"],
                "family": row["family"],
                "space": space,
                "layout": layout or "uniform",
                "outcome": "run" if ran else "impossible",
                "why": why,
            }
        )
    return cases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="run no tests; exit 1 if the page differs from the record")
    parser.add_argument("--keep", action="store_true", help="keep recorded cases that were not tested this time")
    parser.add_argument("pytest", nargs="*", help="arguments for pytest, after --")
    arguments = parser.parse_args()
    if arguments.check:
        sys.exit(int(page(load(RECORD)) != PAGE.read_text(encoding="utf8")))
    kept = load(RECORD) if arguments.keep and RECORD.exists() else []
    decided = [*run_tests(arguments.pytest), *vllm_cases()]
    keys = {tuple(case[name] for name in FIELDS[:4]) for case in decided}
    cases = best([*decided, *(case for case in kept if tuple(case[name] for name in FIELDS[:4]) not in keys)])
    RECORD.write_text("".join(json.dumps(case) + "\n" for case in cases), encoding="utf8")
    PAGE.write_text(page(cases), encoding="utf8")


if __name__ == "__main__":
    main()
