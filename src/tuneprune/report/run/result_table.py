"""The comparison table for the terminal, for Markdown and for the page; one set of rows, three renderings."""

import re
from collections.abc import Sequence

from markupsafe import Markup
from rich.table import Table
from rich.text import Text

from tuneprune.errors import printable
from tuneprune.report.numbers import MISSING, count_text, percent_text, score_text
from tuneprune.report.run.record import RunRecord
from tuneprune.report.run.result_rows import Cell, Column, Comparison, Row, compare
from tuneprune.report.templates import render


def rich_table(records: Sequence[RunRecord]) -> Table:
    """The comparison for a terminal: one section for each base model."""
    comparisons = compare(records)
    columns = _shared_columns(comparisons)
    table = Table(title="Relative performance: pruned over dense + LoRA", title_justify="left")
    table.add_column("model")
    for header in _headers(columns):
        table.add_column(plain(header), justify="right")
    for comparison in comparisons:
        table.add_section()
        table.add_row(plain(_title(comparison), "bold"))
        for row in comparison.rows:
            table.add_row(plain(row.label), *_numbers(row, columns))
    return table


def markdown_table(records: Sequence[RunRecord]) -> str:
    """The comparison as Markdown: a title row for each base model, one table for each set of tasks.

    Ends with a line that says how many seeds are behind the numbers. No records give an empty string.
    """
    by_columns: dict[tuple[Column, ...], list[Comparison]] = {}
    for comparison in compare(records):
        by_columns.setdefault(comparison.columns, []).append(comparison)
    return "\n".join(_markdown(columns, comparisons) for columns, comparisons in by_columns.items())


def html_table(records: Sequence[RunRecord], *, mark_first: bool = False) -> Markup:
    """The comparison as HTML tables, one for each base model, with every metric in a second, folded table.

    Args:
        mark_first: set off the first record's row from the others.
    """
    marked = [(comparison, mark_first and index == 0) for index, comparison in enumerate(compare(records))]
    return Markup("").join(
        render(
            "table.html.j2",
            comparison=comparison,
            title=_title(comparison),
            cell=cell_text,
            marked=next((row.label for row in comparison.rows if row.role == "pruned"), None) if is_marked else None,
        )
        for comparison, is_marked in marked
    )


def cell_text(metric: str, cell: Cell | None) -> str:
    """A cell of a table: the mean, and ± the standard deviation over seeds where there is one."""
    if cell is None:
        return MISSING
    text = percent_text(cell.mean) if metric == "share" else score_text(metric, cell.mean)
    if cell.deviation is None:
        return text
    spread = f"{100 * cell.deviation:.1f}" if metric == "share" else score_text(metric, cell.deviation)
    return f"{text.removesuffix(' %')} ± {spread} %" if metric == "share" else f"{text} ± {spread}"


def seeds_sentence(comparisons: Sequence[Comparison]) -> str:
    """How many seeds the numbers rest on, said plainly."""
    counts = sorted({count for comparison in comparisons for count in comparison.seed_counts})
    if not counts:
        return ""
    if counts == [1]:
        return "One seed."
    several = [count for count in counts if count > 1]
    seeds = " to ".join(map(str, dict.fromkeys((several[0], several[-1]))))
    rest = "; rows without ± have one seed" if counts[0] == 1 else ""
    return f"Mean ± standard deviation over {seeds} seeds{rest}."


def plain(text: str, style: str = "") -> Text:
    """Text for a terminal as it stands: what looks like rich's markup in it is none."""
    return Text(printable(text), style=style)


def escape_markdown(text: str) -> str:
    """`text` that cannot end a table cell, start a tag, a link or a picture, or break the line."""
    line = printable(" ".join(text.split()))
    return re.sub(r"([\\|`\[\]])", r"\\\1", line).replace("<", "&lt;").replace(">", "&gt;")


def code_span(text: str) -> str:
    """`text` as code in a line of Markdown, between more backticks than it has in a row."""
    line = printable(" ".join(text.split()))
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    space = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{space}{line or ' '}{space}{fence}"


def _markdown(columns: tuple[Column, ...], comparisons: Sequence[Comparison]) -> str:
    headers = ["model", *_headers(columns)]
    lines = [_markdown_row(headers), _markdown_row([":---"] + ["---:"] * (len(headers) - 1), is_raw=True)]
    for comparison in comparisons:
        title = [f"**{escape_markdown(_title(comparison))}**"]
        lines.append(_markdown_row(title + [""] * (len(headers) - 1), is_raw=True))
        lines += [_markdown_row([row.label, *_numbers(row, columns)]) for row in comparison.rows]
    sentence = seeds_sentence(comparisons)
    return "\n".join([*lines, "", *([sentence, ""] if sentence else [])])


def _markdown_row(cells: Sequence[str], *, is_raw: bool = False) -> str:
    return "| " + " | ".join(cell if is_raw else escape_markdown(cell) for cell in cells) + " |"


def _shared_columns(comparisons: Sequence[Comparison]) -> tuple[Column, ...]:
    return tuple(dict.fromkeys(column for comparison in comparisons for column in comparison.columns))


def _headers(columns: Sequence[Column]) -> list[str]:
    tasks = [f"{column.task} {column.metric} {column.arrow}" for column in columns]
    return ["kept of total", *tasks, "relative performance"]


def _numbers(row: Row, columns: Sequence[Column]) -> list[str]:
    scores = [cell_text(column.metric, row.scores.get((column.task, column.metric))) for column in columns]
    return [cell_text("share", row.kept_total), *scores, cell_text("share", row.relative)]


def _title(comparison: Comparison) -> str:
    return f"{comparison.model.short_name} ({count_text(comparison.model.parameters)} parameters)"
