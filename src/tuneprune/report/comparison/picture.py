"""The picture of a comparison: quality over size, one line for each method, with intervals over seeds."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from tuneprune.report.charts import Tick, scale, ticks
from tuneprune.report.comparison.record import ComparisonRecord, RowRecord
from tuneprune.report.templates import render, source

WIDTH, LEFT, TOP, BOTTOM = 984, 62, 18, 46
LEGEND, LINE = 250, 19
COLOURS = 10
"""Classes c0 to c9 of the style sheet; further lines repeat them, dashed."""


@dataclass(frozen=True)
class Mark:
    """One mean with its interval, in the units of the drawing."""

    x: float
    y: float
    low: float | None
    high: float | None
    text: str


@dataclass(frozen=True)
class Line:
    """One method over its budgets."""

    label: str
    style: str
    marks: tuple[Mark, ...]
    path: str
    legend_y: float


def quality_picture(comparison: ComparisonRecord, *, standalone: bool = False) -> Markup:
    """Relative performance over the kept share as one <svg>; empty where no run has a relative performance.

    Args:
        standalone: include the style sheet, for a file of its own.
    """
    rows = [row for row in comparison.rows if row.role == "pruned" and row.relative is not None]
    if not rows:
        return Markup("")
    labels = list(dict.fromkeys(row.label for row in rows))
    height = max(380, TOP + BOTTOM + LINE * (len(labels) + 1))
    frame = (LEFT, TOP, WIDTH - LEGEND, height - BOTTOM)
    x_range, y_range = _x_range(rows), _y_range(rows)

    at_x, at_y = scale(*x_range, LEFT, frame[2]), scale(*y_range, frame[3], TOP)

    def mark(row: RowRecord, shift: float) -> Mark:
        estimate = row.relative
        assert estimate is not None
        low, high = (None if end is None else at_y(end) for end in (estimate.low, estimate.high))
        text = f"{row.label}: {row.kept_share.mean:.1%} kept, {estimate.mean:.1%}"
        return Mark(at_x(row.kept_share.mean) + shift, at_y(estimate.mean), low, high, text)

    lines = []
    for index, label in enumerate(labels):
        # Methods are drawn side by side so that their intervals do not overlap.
        shift = (index - (len(labels) - 1) / 2) * min(5.0, 44 / len(labels))
        ordered = sorted((row for row in rows if row.label == label), key=lambda row: row.kept_share.mean)
        marks = tuple(mark(row, shift) for row in ordered)
        path = "M" + "L".join(f"{one.x:.1f},{one.y:.1f}" for one in marks)
        style = f"c{index % COLOURS}" + (" dashed" if index >= COLOURS else "")
        lines.append(Line(label, style, marks, path, TOP + 6 + LINE * index))
    return render(
        "quality.svg.j2",
        size=(WIDTH, height),
        frame=frame,
        lines=lines,
        whole=at_y(1.0) if y_range[0] <= 1 <= y_range[1] else None,
        x_ticks=[Tick(at_x(x), f"{100 * x:g} %") for x in ticks(*x_range, 8)],
        y_ticks=[Tick(at_y(y), f"{100 * y:g} %") for y in ticks(*y_range, 6)],
        style=source("style.css") if standalone else "",
    )


def _x_range(rows: Sequence[RowRecord]) -> tuple[float, float]:
    shares = [row.kept_share.mean for row in rows]
    margin = max(0.12 * (max(shares) - min(shares)), 0.05)
    return max(min(shares) - margin, 0.0), min(max(shares) + margin, 1.02)


def _y_range(rows: Sequence[RowRecord]) -> tuple[float, float]:
    """A range that shows all means; wide intervals are cut off, because they would flatten everything else."""
    estimates = [row.relative for row in rows if row.relative is not None]
    means = [estimate.mean for estimate in estimates]
    reach = max(0.5 * (max(means) - min(means)), 0.03)
    low = min(estimate.low if estimate.low is not None else estimate.mean for estimate in estimates)
    high = max(estimate.high if estimate.high is not None else estimate.mean for estimate in estimates)
    return max(low, min(means) - reach, -reach) - 0.01, max(min(high, max(means) + reach), 1.0) + 0.01
