"""Write the README's result tables from the committed records: `python benchmarks/readme_table.py [--check]`."""

import argparse
import sys
from pathlib import Path

from tuneprune.report import ComparisonRecord, RunRecord, markdown_table
from tuneprune.report.compared_tables import markdown_lines, note, quality_table, summary_table

ROOT = Path(__file__).resolve().parent.parent
NOTHING = "No results are committed yet."
DETAIL = 0.6
"""The budget whose scores the README shows task by task."""


def load_records(results: Path) -> list[RunRecord]:
    """The records under `results`, in the order of their folders' names."""
    return [RunRecord.load(path) for path in sorted(results.glob("*/record.json"))]


def load_comparisons(results: Path) -> dict[str, ComparisonRecord]:
    """The comparisons under `results`, by suite."""
    return {path.stem: ComparisonRecord.load(path) for path in sorted((results / "comparison").glob("*.json"))}


def with_table(readme: str, records: list[RunRecord]) -> str:
    """The README with the table of these records between its markers."""
    return between(readme, "table", markdown_table(records))


def with_comparisons(readme: str, comparisons: dict[str, ComparisonRecord]) -> str:
    """The README with a summary of these comparisons, and the scores of one budget, between its markers."""
    parts: list[str] = []
    for suite, comparison in comparisons.items():
        summary = summary_table(comparison)
        parts += [f"### {suite.capitalize()}", "", f"{summary.title}:", "", *markdown_lines(summary), ""]
        parts += [note(comparison), ""]
        if DETAIL in comparison.keeps:
            table = quality_table(comparison, DETAIL)
            parts += [f"{table.title}:", "", *markdown_lines(table), ""]
    return between(readme, "comparison", "\n".join(parts))


def between(readme: str, name: str, text: str) -> str:
    """The README with `text` between the markers `name`."""
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, _, rest = readme.partition(start)
    _, marker, after = rest.partition(end)
    if not marker:
        raise SystemExit(f"README.md has no {start} ... {end}.")
    return f"{before}{start}\n{text.strip() or NOTHING}\n{end}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 where the table is not current")
    arguments = parser.parse_args()
    path = ROOT / "README.md"
    readme = path.read_text(encoding="utf8")
    results = ROOT / "benchmarks" / "results"
    current = with_comparisons(with_table(readme, load_records(results)), load_comparisons(results))
    if arguments.check:
        sys.exit(readme != current)
    path.write_text(current, encoding="utf8")


if __name__ == "__main__":
    main()
