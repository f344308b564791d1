"""The tables of a comparison as texts, and their rendering for Markdown and for a terminal."""

from rich.table import Table

from tuneprune.report.comparison.intervals import Estimate
from tuneprune.report.comparison.record import ComparisonRecord, RowRecord
from tuneprune.report.numbers import MISSING, bytes_text, count_text, percent_text, score_text, seconds_text
from tuneprune.report.text_table import TextTable, escape_markdown


def quality_table(comparison: ComparisonRecord, keep: float) -> TextTable:
    """Scores of every task at one budget, and relative performance with its difference to the reference method.

    Relative performance is given over the perplexities only and over all tasks: tasks near chance blur the latter.
    """
    columns = comparison.columns
    rows = comparison.at(keep)
    most = max((len(row.seeds) for row in rows if row.role == "pruned"), default=1)
    cells = []
    for row in rows:
        scores = [row.scores.get(column.task, {}).get(column.metric) for column in columns]
        texts = [score_text(c.metric, score.mean if score else None) for c, score in zip(columns, scores, strict=True)]
        fluency = (share_text(row.fluency), difference_text(row, comparison.against, row.fluency_difference))
        relative = (share_text(row.relative), difference_text(row, comparison.against, row.difference))
        name = _name(row, most)
        cells.append((name, row.space or MISSING, percent_text(row.kept_share.mean), *texts, *fluency, *relative))
    points = f"points vs {comparison.against}"
    tasks = [column.text for column in columns]
    headers = ("method", "space", "kept of total", *tasks, "over perplexities", points, "over all tasks", points)
    return TextTable(headers, tuple(cells), _title(comparison, keep), 2, tuple(row.role for row in rows))


def summary_table(comparison: ComparisonRecord) -> TextTable:
    """One row for each method: relative performance at every budget, over perplexities only if all rows have some."""
    pruned = [row for row in comparison.rows if row.role == "pruned"]
    by_place = {(row.label, row.keep): row for row in pruned}
    is_fluent = all(row.fluency is not None for row in pruned)
    headers = ["method", "space"]
    for keep in comparison.keeps:
        headers += [f"keep {percent_text(keep, 0)}", f"points vs {comparison.against}"]
    cells = []
    for label, space in dict.fromkeys((row.label, row.space) for row in pruned):
        texts = [label, space or MISSING]
        for keep in comparison.keeps:
            row = by_place.get((label, keep))
            if row is None:
                texts += [MISSING] * 2
                continue
            share = row.fluency if is_fluent else row.relative
            difference = row.fluency_difference if is_fluent else row.difference
            texts += [share_text(share), difference_text(row, comparison.against, difference)]
        cells.append(tuple(texts))
    over = "the tasks scored by perplexity" if is_fluent else "all tasks"
    title = f"{comparison.model.short_name}: relative performance, mean over seeds and {over}"
    return TextTable(tuple(headers), tuple(cells), title, 2, ("pruned",) * len(cells))


def cost_table(comparison: ComparisonRecord, keep: float) -> TextTable:
    """Time and memory of each method, and size and speed of its result."""
    rows = [row for row in comparison.at(keep) if row.role != "dense"]
    settings = list(dict.fromkeys(key for row in rows for key in row.speed))
    headers = ("method", "decision", "training", "peak memory", "parameters", "weight files")
    cells = [
        (
            row.label,
            seconds_text(row.decide_s),
            seconds_text(row.train_s),
            bytes_text(row.peak_bytes),
            count_text(row.kept_parameters),
            bytes_text(row.bytes_on_disk),
            *(f"{row.speed[key]:.2f} ×" if key in row.speed else MISSING for key in settings),
        )
        for row in rows
    ]
    headers += tuple(f"speed, {key}" for key in settings)
    return TextTable(headers, tuple(cells), _title(comparison, keep), 2, tuple(row.role for row in rows))


def comparison_markdown(comparison: ComparisonRecord, *, with_costs: bool = True) -> str:
    """One quality table for every budget and, if wanted, the costs below it, with a note on seeds."""
    parts = []
    for keep in comparison.keeps:
        table = quality_table(comparison, keep)
        parts += [f"**{escape_markdown(table.title)}**", "", *table.markdown(), ""]
        if with_costs:
            parts += [*cost_table(comparison, keep).markdown(), ""]
    parts += [note(comparison), ""]
    parts += [f"Failed: {escape_markdown(name)}: {escape_markdown(text)}" for name, text in comparison.failed.items()]
    return "\n".join(parts).rstrip() + "\n"


def comparison_rich(comparison: ComparisonRecord) -> list[Table]:
    """The quality tables for a terminal."""
    return [quality_table(comparison, keep).rich() for keep in comparison.keeps]


def note(comparison: ComparisonRecord) -> str:
    """How the numbers are computed, and from which seeds."""
    counts = {len(row.seeds) for row in comparison.rows if row.role == "pruned"}
    if counts == {1}:
        return "One seed: no intervals, and differences may be due to chance."
    seeds = ", ".join(map(str, comparison.seeds))
    return (
        f"Means over seeds {seeds}; ± is half the width of the 95 % Student-t interval. Percentages over perplexities"
        " and over all tasks are mean relative performance; points are percentage points of difference from"
        f" {comparison.against}, paired by seed, with 95 % intervals; * marks an interval that excludes 0."
    )


def share_text(estimate: Estimate | None) -> str:
    """A share in percent with half the width of its interval."""
    if estimate is None:
        return MISSING
    text = percent_text(estimate.mean)
    return text if not estimate.reach else f"{text.removesuffix(' %')} ± {100 * estimate.reach:.1f} %"


def difference_text(row: RowRecord, against: str, difference: Estimate | None) -> str:
    """A difference in percentage points with its interval, and a star if that excludes 0."""
    if row.role == "pruned" and row.label == against:
        return "reference"
    if difference is None:
        return MISSING
    text = f"{100 * difference.mean:+.1f}"
    if difference.low is None or difference.high is None:
        return text
    star = " *" if difference.excludes_zero else ""
    return f"{text} ({100 * difference.low:+.1f} to {100 * difference.high:+.1f}){star}"


def _name(row: RowRecord, most: int) -> str:
    """The label, with the number of seeds if some are missing."""
    few = row.role == "pruned" and len(row.seeds) < most
    return f"{row.label} ({len(row.seeds)} of {most} seeds)" if few else row.label


def _title(comparison: ComparisonRecord, keep: float) -> str:
    size = count_text(comparison.model.parameters)
    return f"{comparison.model.short_name} ({size} parameters), keep {percent_text(keep, 0)}"
