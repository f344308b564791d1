"""The training curves of a run: which logged numbers are drawn, and how a reader should take them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from tuneprune.report.charts import Chart, Point, Series, smoothed
from tuneprune.report.run.record import RunRecord

Entry = Mapping[str, Any]

PHASE_LABELS = {"frozen": "decision frozen", "recover": "after the cut"}
SMOOTH_FROM = 30


def curves(record: RunRecord, metrics: Sequence[Entry], reference: Sequence[Entry] = ()) -> list[Chart]:
    """The charts of a run, in reading order; a quantity that was never logged has none.

    Args:
        metrics: the objects of metrics.jsonl. Plain tuning (`tune`) beside a searching phase counts as the
            dense + LoRA reference, as does everything in `reference`.
    """
    own, reference = _split(metrics, reference)
    line = timeline(own)
    marks = _marks(line)
    budget, target = record.budget, _target(record)
    shares = _lines(line, (("kept_share", "decision", "main"), ("soft_share", "soft masks", "second")))
    single = (
        (
            "calibration_loss",
            "Calibration loss",
            "What the generator of masks minimises, on held-out text.",
            False,
        ),
        (
            "budget_loss",
            "Budget loss",
            "How far the decision is from the budget; zero when it is met.",
            False,
        ),
        (
            "lasso",
            "Group lasso",
            "Norm of what LoRA writes to units about to be removed; smaller, less is lost.",
            True,
        ),
        ("mask_churn", "Mask churn", "Share of units whose mask changed since the last logged step.", False),
    )
    charts = [
        _loss_chart(line, timeline(reference), marks),
        *(
            _chart(
                title,
                note,
                _lines(line, ((key, title, "main"),)),
                marks,
                is_wide=is_wide,
                is_share=key == "mask_churn",
            )
            for key, title, note, is_wide in single
        ),
    ]
    kept = Chart(
        "Kept share",
        "Share of all parameters that the masks keep.",
        shares,
        target,
        f"target {100 * budget.keep:g} % of {budget.of}" if target is not None else "",
        marks,
        is_share=True,
    )
    charts.insert(2, kept)
    last_step = max((x for chart in charts for series in chart.series for x, _ in series.points), default=0.0)
    return [replace(chart, last_step=last_step) for chart in charts if chart.series]


def _target(record: RunRecord) -> float | None:
    """The budget as a share of all parameters, which is how the kept share is logged; None for a budget of time."""
    if record.budget.of == "latency":
        return None
    if record.budget.of != "prunable":
        return record.budget.keep
    return 1 - (1 - record.budget.keep) * record.parameters.dense_prunable / record.parameters.dense_total


def timeline(entries: Sequence[Entry]) -> list[tuple[float, Entry]]:
    """Logged objects with the step they are drawn at.

    Steps after the cut count on from the last one before it; a resumed run logs some steps twice and the
    later object counts.
    """
    placed: list[tuple[float, Entry]] = []
    offset = 0.0
    for entry in entries:
        if "step" not in entry:
            continue
        is_new_part = bool(placed) and _is_recovery(entry) and not _is_recovery(placed[-1][1])
        if is_new_part:
            offset = placed[-1][0] if float(entry["step"]) <= float(placed[-1][1]["step"]) else 0.0
        x = offset + float(entry["step"])
        while not is_new_part and placed and placed[-1][0] >= x and _is_recovery(placed[-1][1]) == _is_recovery(entry):
            placed.pop()
        placed.append((x, entry))
    return placed


def _is_recovery(entry: Entry) -> bool:
    return entry.get("phase") == "recover"


def _split(metrics: Sequence[Entry], reference: Sequence[Entry]) -> tuple[list[Entry], list[Entry]]:
    """The run's own objects and those of the dense + LoRA reference."""
    is_searching = any(entry.get("phase") in ("control", "frozen") for entry in metrics)
    own = [entry for entry in metrics if not (is_searching and entry.get("phase") == "tune")]
    plain = [entry for entry in metrics if is_searching and entry.get("phase") == "tune"]
    return own, [*plain, *reference]


def _marks(line: Sequence[tuple[float, Entry]]) -> tuple[tuple[float, str], ...]:
    """Where the phases with a label begin, unless the run begins with them."""
    marks = []
    for (_, before), (x, entry) in pairwise(line):
        phase = entry.get("phase")
        if phase != before.get("phase") and phase in PHASE_LABELS:
            marks.append((x, PHASE_LABELS[phase]))
    return tuple(marks)


def _points(line: Sequence[tuple[float, Entry]], key: str) -> list[Point]:
    return [(x, float(entry[key])) for x, entry in line if isinstance(entry.get(key), int | float)]


def _lines(line: Sequence[tuple[float, Entry]], wanted: Sequence[tuple[str, str, str]]) -> tuple[Series, ...]:
    series = (Series(label, _points(line, key), style) for key, label, style in wanted)
    return tuple(one for one in series if one.points)


def _loss_chart(
    line: Sequence[tuple[float, Entry]],
    reference: Sequence[tuple[float, Entry]],
    marks: tuple[tuple[float, str], ...],
) -> Chart:
    """Training loss, averaged where it is noisy, over the reference's."""
    series = [
        *_averaged("dense + LoRA", _points(reference, "loss"), "reference"),
        *_averaged("this run", _points(line, "loss"), "main"),
    ]
    note = "Cross entropy in nats a token on the training stream; the thin line is each logged step."
    return Chart("Training loss", note, tuple(sorted(series, key=lambda one: one.style != "faint")), marks=marks)


def _averaged(label: str, points: list[Point], style: str) -> list[Series]:
    finite = [point for point in points if math.isfinite(point[1])]
    if len(finite) < SMOOTH_FROM:
        return [Series(label, finite, style)] if finite else []
    average = Series(label, smoothed(finite, len(finite) // 10), style)
    return [Series("", finite, "faint"), average] if style == "main" else [average]


def _chart(
    title: str,
    note: str,
    series: tuple[Series, ...],
    marks: tuple[tuple[float, str], ...],
    *,
    is_wide: bool,
    is_share: bool,
) -> Chart:
    """A chart of one quantity; on a log axis when it may be wide-ranging and is."""
    values = [y for one in series for _, y in one.points if y > 0]
    is_log = is_wide and bool(values) and max(values) > 100 * min(values)
    return Chart(title, note, series, marks=marks, is_share=is_share, is_log=is_log)
