"""The files of a comparison: `comparison.json`, `table.md`, `quality.svg` and `report.html`."""

from pathlib import Path

from markupsafe import Markup

from tuneprune.report.comparison.picture import quality_picture
from tuneprune.report.comparison.record import ComparisonRecord, RowRecord
from tuneprune.report.comparison.tables import comparison_markdown, cost_table, difference_text, note, quality_table
from tuneprune.report.numbers import percent_text
from tuneprune.report.run.details import flat
from tuneprune.report.templates import render, source
from tuneprune.report.text_table import TextTable
from tuneprune.system.storage import write_text


def write_comparison(comparison: ComparisonRecord, config_yaml: str, out: Path) -> Path:
    """The path of the page; the other files are next to it in the folder `out`."""
    comparison.save(out / "comparison.json")
    write_text(out / "table.md", comparison_markdown(comparison))
    picture = quality_picture(comparison, standalone=True)
    if picture:
        write_text(out / "quality.svg", str(picture))
    return write_text(out / "report.html", str(render_comparison(comparison, config_yaml)))


def render_comparison(comparison: ComparisonRecord, config_yaml: str) -> Markup:
    """The page as HTML, readable without a network or a script."""
    steps = {row.steps for row in comparison.rows if row.role == "pruned"}
    return render(
        "comparison.html.j2",
        comparison=comparison,
        style=source("style.css"),
        labels=list(dict.fromkeys(cell.label for cell in comparison.cells)),
        verdict=verdict(comparison),
        note=note(comparison),
        picture=quality_picture(comparison),
        steps=steps.pop() if len(steps) == 1 else None,
        budgets=[
            (quality_table(comparison, keep), cost_table(comparison, keep), task_table(comparison, keep))
            for keep in comparison.keeps
        ],
        config=config_yaml.strip(),
        environment=flat(comparison.environment.model_dump()),
    )


def verdict(comparison: ComparisonRecord) -> str:
    """Which method is best at each budget, and whether the seeds show that it is not chance."""
    return " ".join(_verdict_at(comparison, keep) for keep in comparison.keeps)


def task_table(comparison: ComparisonRecord, keep: float) -> TextTable:
    """Differences to the reference method by task, in points of relative performance."""
    rows = [row for row in comparison.at(keep) if row.task_differences]
    tasks = [column.task for column in comparison.columns]
    cells = [
        (row.label, *(difference_text(row, comparison.against, row.task_differences.get(task)) for task in tasks))
        for row in rows
    ]
    title = f"Points vs {comparison.against} by task"
    return TextTable(("method", *tasks), tuple(cells), title, roles=tuple(row.role for row in rows))


def _verdict_at(comparison: ComparisonRecord, keep: float) -> str:
    rows = [row for row in comparison.at(keep) if row.role == "pruned" and row.relative is not None]
    place = f"At keep {percent_text(keep, 0)}"
    if not rows:
        return f"{place} there is no dense + LoRA reference to compare with."
    best, *others = sorted(rows, key=lambda row: row.relative.mean if row.relative else 0.0, reverse=True)
    assert best.relative is not None
    text = f"{place} {best.label} is best: {percent_text(best.relative.mean)} of dense + LoRA"
    if best.difference is not None:
        return f"{text}, {_distance(best, comparison.against)}."
    rival = next((row for row in others if row.difference is not None), None)
    if best.label != comparison.against or rival is None:
        return f"{text}."
    return f"{text}; {rival.label} is next, {_distance(rival, comparison.against)}."


def _distance(row: RowRecord, against: str) -> str:
    """A difference in words, and whether the seeds show that it is not chance."""
    difference = row.difference
    assert difference is not None
    points = f"{abs(100 * difference.mean):.1f} points {'behind' if difference.mean < 0 else 'ahead of'} {against}"
    if difference.low is None or difference.high is None:
        return f"{points} with one seed"
    interval = f"95 % interval {100 * difference.low:+.1f} to {100 * difference.high:+.1f}"
    return f"{points} ({interval})" if difference.excludes_zero else f"{points}, which may be chance ({interval})"
