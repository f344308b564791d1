"""Numbers as texts for people; in one place, so that tables, cards and pages agree."""

import math

MISSING = "–"


def percent_text(share: float | None, digits: int = 1) -> str:
    """`share` (1 = everything) in percent, e.g. "60.0 %"."""
    return MISSING if share is None or math.isnan(share) else f"{100 * share:.{digits}f} %"


def counted_text(of: str) -> str:
    """The thing that a budget counts, e.g. "total parameters", "latency"."""
    return {"bytes": "weight bytes", "latency": "latency"}.get(of, f"{of} parameters")


def alignment_text(multiple_of: int | str) -> str:
    """The constraint on widths, e.g. "widths in multiples of 64"."""
    return "wide layers in multiples of 128" if multiple_of == "auto" else f"widths in multiples of {multiple_of}"


def count_text(count: float | None) -> str:
    """A count with three significant digits and its unit, e.g. "6.12 M"."""
    return MISSING if count is None else _scaled(count, ("", "k", "M", "B", "T"))


def bytes_text(size: float | None) -> str:
    """A size in decimal bytes, e.g. "12.3 MB"."""
    return MISSING if size is None else _scaled(size, ("B", "kB", "MB", "GB", "TB"))


def seconds_text(seconds: float | None) -> str:
    """A duration, e.g. "0.8 s", "3 min 20 s", "2 h 05 min"."""
    if seconds is None:
        return MISSING
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def scientific_text(value: float | None) -> str:
    """A small or large number in two significant digits, e.g. "3.1e-07"; plain zero as "0"."""
    if value is None:
        return MISSING
    return "0" if value == 0 else f"{value:.1e}"


def score_text(metric: str, value: float | None) -> str:
    """A score with as many digits as its metric needs: perplexity about four, shares three decimals."""
    if value is None or math.isnan(value):
        return MISSING
    if math.isinf(value):
        return "∞"
    if metric != "perplexity":
        return f"{value:.3f}"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}" if value >= 100 else f"{value:.2f}"


def _scaled(value: float, units: tuple[str, ...]) -> str:
    """`value` in the largest of `units` that keeps it at or above one."""
    index = 0
    # 999.5 rounds to 1000 in three digits, which reads better as 1.00 of the next unit.
    while index + 1 < len(units) and abs(value) >= 999.5:
        value, index = value / 1000, index + 1
    digits = 0 if index == 0 or abs(value) >= 99.95 else 1 if abs(value) >= 9.995 else 2
    return f"{value:.{digits}f} {units[index]}".rstrip()
