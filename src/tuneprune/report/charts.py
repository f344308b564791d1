"""Line charts as inline SVG; colours and fonts come from the page's style sheet, for light and dark schemes."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from markupsafe import Markup

from tuneprune.report.templates import render

WIDTH, HEIGHT = 476, 236
LEFT, RIGHT, TOP, BOTTOM = 54, 12, 22, 34
MAX_POINTS = 300

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """One line of a chart; `style` is a class of the style sheet: main, second, reference or faint."""

    label: str
    points: Sequence[Point]
    style: str = "main"


@dataclass(frozen=True)
class Chart:
    """Lines, a target to compare them with, and the steps at which a phase begins.

    The x axis runs from 0 to `last_step` or further, so that the charts of one run have the same axis.
    """

    title: str
    note: str
    series: tuple[Series, ...]
    target: float | None = None
    target_label: str = ""
    marks: tuple[tuple[float, str], ...] = ()
    last_step: float = 0
    is_share: bool = False
    is_log: bool = False


@dataclass(frozen=True)
class Tick:
    """A labelled position on an axis, in the units of the drawing."""

    position: float
    label: str


def line_chart(chart: Chart) -> Markup:
    """The chart as one <svg> with a title for screen readers; empty when no series has a finite point."""
    series = [_finite(line, is_log=chart.is_log) for line in chart.series]
    points = [point for line in series for point in line.points]
    if not points:
        return Markup("")
    x_low, x_high = 0.0, max(chart.last_step, *(x for x, _ in points), 1.0)
    values = [y for _, y in points] + ([chart.target] if chart.target is not None else [])
    transform = math.log10 if chart.is_log else float
    y_low, y_high = _padded(transform(min(values)), transform(max(values)))
    y_ticks = _y_ticks(y_low, y_high, is_log=chart.is_log)
    at_x, on_y = scale(x_low, x_high, LEFT, WIDTH - RIGHT), scale(y_low, y_high, HEIGHT - BOTTOM, TOP)

    def at_y(y: float) -> float:
        return on_y(transform(y))

    lines = [(line, _path(line.points, at_x, at_y)) for line in series if line.points]
    return render(
        "chart.svg.j2",
        chart=chart,
        lines=lines,
        size=(WIDTH, HEIGHT),
        frame=(LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM),
        x_ticks=[Tick(at_x(x), f"{x:g}") for x in ticks(x_low, x_high, 6) if x_low <= x <= x_high],
        y_ticks=[Tick(at_y(y), _label(y, is_share=chart.is_share)) for y in y_ticks],
        target=None if chart.target is None else at_y(chart.target),
        marks=[(at_x(x), label) for x, label in chart.marks if x_low < x < x_high],
    )


def scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """The position on an axis that runs from `low` at `start` to `high` at `end`."""
    return lambda value: start + (value - low) / (high - low) * (end - start)


def smoothed(points: Sequence[Point], window: int) -> list[Point]:
    """Centred moving average over about `window` points, over fewer near both ends."""
    sums = [0.0, *accumulate(y for _, y in points)]
    result = []
    for index, (x, _) in enumerate(points):
        reach = min(window // 2, index, len(points) - 1 - index)
        first, last = index - reach, index + reach + 1
        result.append((x, (sums[last] - sums[first]) / (last - first)))
    return result


def _finite(line: Series, *, is_log: bool) -> Series:
    """The points of a line that can be drawn, thinned to about `MAX_POINTS`."""
    points = [(x, y) for x, y in line.points if math.isfinite(x) and math.isfinite(y) and (y > 0 or not is_log)]
    stride = math.ceil(len(points) / MAX_POINTS)
    thinned = points[:: stride or 1]
    if points and thinned[-1] != points[-1]:
        thinned.append(points[-1])
    return Series(line.label, thinned, line.style)


def _padded(low: float, high: float) -> tuple[float, float]:
    """The range with a margin, also for a flat line."""
    margin = (high - low) * 0.06 or max(abs(high) * 0.1, 1e-6)
    # The axis of a quantity that is never negative does not go below zero.
    return (low - margin if low < 0 or low > margin else low, high + margin)


def _path(points: Sequence[Point], at_x: Callable[[float], float], at_y: Callable[[float], float]) -> str:
    if len(points) == 1:
        x, y = at_x(points[0][0]), at_y(points[0][1])
        return f"M{x - 2:.1f},{y:.1f}L{x + 2:.1f},{y:.1f}"
    return "M" + "L".join(f"{at_x(x):.1f},{at_y(y):.1f}" for x, y in points)


def ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten) inside the range, at most about `count`."""
    raw = (high - low) / max(count, 1)
    power = 10 ** math.floor(math.log10(raw))
    step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    digits = max(0, -math.floor(math.log10(step)))
    return [round(index * step, digits) for index in range(first, last + 1)]


def _y_ticks(low: float, high: float, *, is_log: bool) -> list[float]:
    """Tick values in data units; `low` and `high` are exponents on a log axis."""
    if not is_log:
        return ticks(low, high, 5)
    factors = (1,) if high - low > 2 else (1, 2, 5)
    decades = range(math.floor(low), math.ceil(high) + 1)
    values = [factor * 10.0**decade for decade in decades for factor in factors]
    inside = [value for value in values if low <= math.log10(value) <= high]
    return inside[:: math.ceil(len(inside) / 6) or 1]


def _label(value: float, *, is_share: bool) -> str:
    if is_share:
        return f"{100 * value:g} %"
    return f"{value:.0e}" if value and not 1e-3 <= abs(value) < 1e5 else f"{value:g}"
