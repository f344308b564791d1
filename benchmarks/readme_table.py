"""Write the README's result table from the committed records: `python benchmarks/readme_table.py [--check]`."""

import argparse
import sys
from pathlib import Path

from tuneprune.report import RunRecord, markdown_table

ROOT = Path(__file__).resolve().parent.parent
START, END = "<!-- table -->", "<!-- /table -->"
NOTHING = "No results are committed yet."


def load_records(results: Path) -> list[RunRecord]:
    """The records under `results`, in the order of their folders' names."""
    return [RunRecord.load(path) for path in sorted(results.glob("*/record.json"))]


def with_table(readme: str, records: list[RunRecord]) -> str:
    """The README with the table of these records between its markers."""
    before, _, rest = readme.partition(START)
    _, marker, after = rest.partition(END)
    if not marker:
        raise SystemExit(f"README.md has no {START} ... {END}.")
    table = markdown_table(records).strip() or NOTHING
    return f"{before}{START}\n{table}\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 where the table is not current")
    arguments = parser.parse_args()
    path = ROOT / "README.md"
    readme = path.read_text(encoding="utf8")
    current = with_table(readme, load_records(ROOT / "benchmarks" / "results"))
    if arguments.check:
        sys.exit(readme != current)
    path.write_text(current, encoding="utf8")


if __name__ == "__main__":
    main()
