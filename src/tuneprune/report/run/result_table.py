"""The result table of runs for a terminal, for Markdown and for the page: one set of rows, three renderings."""

from collections.abc import Sequence

from markupsafe import Markup
from rich.table import Table

from tuneprune.report.numbers import MISSING, count_text, percent_text, score_text
from tuneprune.report.run.record import RunRecord
from tuneprune.report.run.result_rows import Cell, Column, Comparison, Row, compare
from tuneprune.report.templates import render
from tuneprune.report.text_table import TextTable


def rich_table(records: Sequence[RunRecord]) -> Table:
    """The results for a terminal: one section for each base model."""
    comparisons = compare(records)
    return _table(comparisons, [column for comparison in comparisons for column in comparison.columns]).rich()


def markdown_table(records: Sequence[RunRecord]) -> str:
    """The results as Markdown: a title row for each base model, one table for each set of tasks.

    Ends with a line that says how many seeds the numbers come from. No records give an empty string.
    """
    by_columns: dict[tuple[Column, ...], list[Comparison]] = {}
    for comparison in compare(records):
        by_columns.setdefault(comparison.columns, []).append(comparison)
    lines: list[str] = []
    for columns, comparisons in by_columns.items():
        sentence = seeds_sentence(comparisons)
        lines += [*_table(comparisons, columns).markdown(), "", *([sentence, ""] if sentence else [])]
    return "\n".join(lines)


def html_table(record: RunRecord) -> Markup:
    """The results of one run as an HTML table, with every metric in a second, folded table."""
    (comparison,) = compare([record])
    return render("results.html.j2", comparison=comparison, title=_title(comparison), cell=cell_text)


def cell_text(metric: str, cell: Cell | None) -> str:
    """A cell of a table: the mean, and ± the standard deviation over seeds if there is one."""
    if cell is None:
        return MISSING
    text = percent_text(cell.mean) if metric == "share" else score_text(metric, cell.mean)
    if cell.deviation is None:
        return text
    spread = f"{100 * cell.deviation:.1f}" if metric == "share" else score_text(metric, cell.deviation)
    return f"{text.removesuffix(' %')} ± {spread} %" if metric == "share" else f"{text} ± {spread}"


def seeds_sentence(comparisons: Sequence[Comparison]) -> str:
    """How many seeds the numbers come from."""
    counts = sorted({len(row.seeds) for comparison in comparisons for row in comparison.rows if row.role == "pruned"})
    if not counts:
        return ""
    if counts == [1]:
        return "One seed."
    several = [count for count in counts if count > 1]
    seeds = " to ".join(map(str, dict.fromkeys((several[0], several[-1]))))
    rest = "; rows without ± have one seed" if counts[0] == 1 else ""
    return f"Mean ± standard deviation over {seeds} seeds{rest}."


def _table(comparisons: Sequence[Comparison], columns: Sequence[Column]) -> TextTable:
    columns = list(dict.fromkeys(columns))
    rows: list[tuple[str, ...]] = []
    for comparison in comparisons:
        rows.append((_title(comparison),))
        rows += [(row.label, *_numbers(row, columns)) for row in comparison.rows]
    headers = ("model", "kept of total", *(column.text for column in columns), "relative performance")
    return TextTable(headers, tuple(rows), "Relative performance: pruned over dense + LoRA")


def _numbers(row: Row, columns: Sequence[Column]) -> list[str]:
    scores = [cell_text(column.metric, row.scores.get((column.task, column.metric))) for column in columns]
    return [cell_text("share", row.kept_total), *scores, cell_text("share", row.relative)]


def _title(comparison: Comparison) -> str:
    return f"{comparison.model.short_name} ({count_text(comparison.model.parameters)} parameters)"
