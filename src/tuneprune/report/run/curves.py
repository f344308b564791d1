"""The training curves of a run: which logged numbers are drawn, and the note below each title."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from tuneprune.report.charts import Chart, Point, Series, smoothed
from tuneprune.report.run.record import RunRecord

Entry = Mapping[str, Any]
Line = Sequence[tuple[float, Entry]]
Marks = tuple[tuple[float, str], ...]

PHASE_LABELS = {"frozen": "decision frozen", "recover": "after the cut"}
SMOOTH_FROM = 30
NOTES = {
    "calibration_loss": ("Calibration loss", "The loss that the mask generator minimises, on held-out text."),
    "budget_loss": ("Budget loss", "How far the decision is from the budget; zero when it is met."),
    "lasso": ("Group lasso", "Norm of the LoRA update on units about to be removed; the smaller, the less is lost."),
    "mask_churn": ("Mask churn", "Share of units whose mask changed since the last logged step."),
}
"""Title and note of the charts that show one quantity, by its key in the log."""


def curves(record: RunRecord, metrics: Sequence[Entry], reference: Sequence[Entry] = ()) -> list[Chart]:
    """The charts of a run, in reading order; a quantity that was never logged has none.

    Args:
        metrics: the objects of metrics.jsonl. If a phase of them searches, plain tuning (`tune`) in them is the
            dense + LoRA reference, as is everything in `reference`.
    """
    own, reference = _split(metrics, reference)
    line = timeline(own)
    marks = _marks(line)
    charts = [_loss_chart(line, timeline(reference), marks), _share_chart(record, line, marks)]
    charts += [_chart(key, title, note, line, marks) for key, (title, note) in NOTES.items()]
    charts[1:3] = [charts[2], charts[1]]  # the calibration loss next to the training loss
    last_step = max((x for chart in charts for series in chart.series for x, _ in series.points), default=0.0)
    return [replace(chart, last_step=last_step) for chart in charts if chart.series]


def _target(record: RunRecord) -> float | None:
    """The budget as a share of all parameters, as the kept share is logged; None for a latency budget."""
    if record.budget.of == "latency":
        return None
    if record.budget.of != "prunable":
        return record.budget.keep
    return 1 - (1 - record.budget.keep) * record.parameters.dense_prunable / record.parameters.dense_total


def timeline(entries: Sequence[Entry]) -> list[tuple[float, Entry]]:
    """Logged objects with the step they are drawn at.

    Steps after the cut count on from those before it, also where an earlier version logged them from 1 again. A resumed
    run logs some steps twice; the later object counts.
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


def _marks(line: Line) -> Marks:
    """Where the phases with a label begin, except at the start of the run."""
    marks = []
    for (_, before), (x, entry) in pairwise(line):
        phase = entry.get("phase")
        if phase != before.get("phase") and phase in PHASE_LABELS:
            marks.append((x, PHASE_LABELS[phase]))
    return tuple(marks)


def _points(line: Line, key: str) -> list[Point]:
    return [(x, float(entry[key])) for x, entry in line if isinstance(entry.get(key), int | float)]


def _share_chart(record: RunRecord, line: Line, marks: Marks) -> Chart:
    """The share that the masks keep, and the budget."""
    series = [
        Series("decision", _points(line, "kept_share"), "main"),
        Series("soft masks", _points(line, "soft_share"), "second"),
    ]
    return Chart(
        "Kept share",
        "Share of all parameters that the masks keep.",
        tuple(one for one in series if one.points),
        _target(record),
        f"target {100 * record.budget.keep:g} % of {record.budget.of}",
        marks,
        is_share=True,
    )


def _loss_chart(line: Line, reference: Line, marks: Marks) -> Chart:
    """The training loss and the reference's, averaged where there are many steps."""
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


def _chart(key: str, title: str, note: str, line: Line, marks: Marks) -> Chart:
    """A chart of one quantity; the lasso's has a log axis where it spans more than two orders of magnitude."""
    points = _points(line, key)
    values = [y for _, y in points if y > 0]
    is_log = key == "lasso" and bool(values) and max(values) > 100 * min(values)
    series = (Series(title, points, "main"),) if points else ()
    return Chart(title, note, series, marks=marks, is_share=key == "mask_churn", is_log=is_log)
