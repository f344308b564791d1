"""Write the result tables of README.md and docs/results.md from the committed records.

python benchmarks/readme_table.py [--check]
"""

import argparse
import sys
from pathlib import Path

from tuneprune.report import ComparisonRecord, RunRecord, markdown_table
from tuneprune.report.comparison.intervals import Estimate
from tuneprune.report.comparison.tables import note, quality_table, share_text, summary_table

ROOT = Path(__file__).resolve().parent.parent
NOTHING = "No results are committed yet."
README, DETAILS = ROOT / "README.md", ROOT / "docs" / "results.md"
DETAIL = 0.6
"""The budget whose scores are shown task by task, and that ranks the methods of the README."""
SHOWN = 6
"""Methods in the README."""


def load_records(results: Path, folders: str = "*") -> list[RunRecord]:
    """The records under `results`, in the order of their folders' names."""
    return [RunRecord.load(path) for path in sorted(results.glob(f"{folders}/record.json"))]


def load_comparisons(results: Path) -> dict[str, ComparisonRecord]:
    """The comparisons under `results`, by suite."""
    return {path.stem: ComparisonRecord.load(path) for path in sorted((results / "comparison").glob("*.json"))}


def with_table(page: str, records: list[RunRecord]) -> str:
    """The page with the table of these records between its markers."""
    return between(page, "table", markdown_table(records))


def with_quickstart(page: str, results: Path) -> str:
    """The page with the table of `make quickstart` between its markers."""
    records = [one for one in load_records(results, "quickstart_*") if one.method.name in ("atp", "magnitude")]
    return between(page, "quickstart", markdown_table(records))


def with_smollm2(page: str, results: Path) -> str:
    """The page with the comparison on a real pretrained model between its markers."""
    path = results / "smollm2" / "comparison.json"
    if not path.exists():
        return between(page, "smollm2", "")
    comparison = ComparisonRecord.load(path)
    return between(page, "smollm2", "\n".join([*summary_table(comparison).markdown(), "", note(comparison)]))


def with_best(page: str, comparisons: dict[str, ComparisonRecord]) -> str:
    """The page with the methods of the best mean over suites between its markers."""
    places = [(suite, keep) for suite, comparison in comparisons.items() for keep in comparison.keeps]
    shares: dict[str, dict[tuple[str, float], Estimate | None]] = {}
    for suite, comparison in comparisons.items():
        for row in comparison.rows:
            if row.role == "pruned":
                shares.setdefault(row.label, {})[suite, row.keep] = row.fluency
    lines = [f"| method | {' | '.join(f'{suite}, keep {keep:.0%}' for suite, keep in places)} |"]
    lines += ["| :--- |" + " ---: |" * len(places)]
    for name in sorted(shares, key=lambda name: -mean_share(shares[name], comparisons))[:SHOWN]:
        cells = (share_text(shares[name].get(place)) for place in places)
        lines.append(f"| [{name}](docs/methods/{name}.md) | {' | '.join(cells)} |")
    return between(page, "best", "\n".join(lines))


def mean_share(shares: dict[tuple[str, float], Estimate | None], comparisons: dict[str, ComparisonRecord]) -> float:
    """The mean over suites at the budget that ranks."""
    found = [shares.get((suite, DETAIL)) for suite in comparisons]
    return sum(one.mean if one else 0.0 for one in found) / max(len(found), 1)


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


def with_results(page: str, results: Path, comparisons: dict[str, ComparisonRecord]) -> str:
    """The page of all results."""
    return with_details(with_comparisons(with_table(page, load_records(results)), comparisons), comparisons)


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
        README: (readme, with_best(with_quickstart(with_smollm2(readme, results), results), comparisons)),
        DETAILS: (details, with_results(details, results, comparisons)),
    }
    if arguments.check:
        sys.exit(any(before != after for before, after in current.values()))
    for path, (_, after) in current.items():
        path.write_text(after, encoding="utf8")


if __name__ == "__main__":
    main()
