"""Write the result tables of README.md and docs/results.md from the committed records.

python benchmarks/readme_table.py [--check]
"""

import argparse
import sys
from pathlib import Path

from tuneprune.report import ComparisonRecord, RunRecord, markdown_table
from tuneprune.report.comparison.tables import note, quality_table, summary_table

ROOT = Path(__file__).resolve().parent.parent
NOTHING = "No results are committed yet."
README, DETAILS = ROOT / "README.md", ROOT / "docs" / "results.md"
DETAIL = 0.6
"""The budget for which scores are shown task by task."""


def load_records(results: Path) -> list[RunRecord]:
    """The records under `results`, in the order of their folders' names."""
    return [RunRecord.load(path) for path in sorted(results.glob("*/record.json"))]


def load_comparisons(results: Path) -> dict[str, ComparisonRecord]:
    """The comparisons under `results`, by suite."""
    return {path.stem: ComparisonRecord.load(path) for path in sorted((results / "comparison").glob("*.json"))}


def with_table(page: str, records: list[RunRecord]) -> str:
    """The page with the table of these records between its markers."""
    return between(page, "table", markdown_table(records))


def with_comparisons(page: str, comparisons: dict[str, ComparisonRecord]) -> str:
    """The page with a summary of these comparisons between its markers."""
    parts: list[str] = []
    for suite, comparison in comparisons.items():
        summary = summary_table(comparison)
        parts += [f"### {suite.capitalize()}", "", f"{summary.title}:", "", *summary.markdown(), ""]
        parts += [note(comparison), ""]
    return between(page, "comparison", "\n".join(parts))


def with_details(page: str, comparisons: dict[str, ComparisonRecord]) -> str:
    """The page with the scores of one budget of these comparisons, task by task, between its markers."""
    parts: list[str] = []
    for suite, comparison in comparisons.items():
        if DETAIL in comparison.keeps:
            table = quality_table(comparison, DETAIL)
            parts += [f"### {suite.capitalize()}", "", f"{table.title}:", "", *table.markdown(), ""]
    return between(page, "details", "\n".join(parts))


def between(page: str, name: str, text: str) -> str:
    """The page with `text` between the markers `name`."""
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, _, rest = page.partition(start)
    _, marker, after = rest.partition(end)
    if not marker:
        raise SystemExit(f"The page has no {start} ... {end}.")
    return f"{before}{start}\n{text.strip() or NOTHING}\n{end}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if a table is not current")
    arguments = parser.parse_args()
    results = ROOT / "benchmarks" / "results"
    comparisons = load_comparisons(results)
    readme, details = (path.read_text(encoding="utf8") for path in (README, DETAILS))
    current = {
        README: (readme, with_comparisons(readme, comparisons)),
        DETAILS: (details, with_details(with_table(details, load_records(results)), comparisons)),
    }
    if arguments.check:
        sys.exit(any(before != after for before, after in current.values()))
    for path, (_, after) in current.items():
        path.write_text(after, encoding="utf8")


if __name__ == "__main__":
    main()
