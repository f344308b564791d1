"""Rows of the result table: the dense, the tuned dense and every pruned model, averaged over seeds."""

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from tuneprune.report.numbers import alignment_text, percent_text
from tuneprune.report.run.record import ModelRecord, RunRecord, ScoreRecord, Scores
from tuneprune.scores import LOWER_IS_BETTER, headline_metric, relative_performance

Role = Literal["dense", "dense_tuned", "pruned"]


@dataclass(frozen=True)
class Cell:
    """A number over seeds: its mean, and its standard deviation if it differs between seeds."""

    mean: float
    deviation: float | None = None

    @classmethod
    def over(cls, values: Sequence[float]) -> "Cell":
        """The cell of one or more values."""
        is_varied = len(set(values)) > 1 and all(map(math.isfinite, values))
        return cls(sum(values) / len(values), statistics.stdev(values) if is_varied else None)


@dataclass(frozen=True)
class Column:
    """One task and its headline metric."""

    task: str
    metric: str

    @property
    def arrow(self) -> str:
        """The direction of better values."""
        return "↓" if self.metric in LOWER_IS_BETTER else "↑"

    @property
    def text(self) -> str:
        """The heading of the column."""
        return f"{self.task} {self.metric} {self.arrow}"


@dataclass(frozen=True)
class Row:
    """One model's numbers: every metric of every task, the share kept, the relative performance."""

    label: str
    role: Role
    scores: Mapping[tuple[str, str], Cell]
    kept_total: Cell | None = None
    relative: Cell | None = None
    seeds: tuple[int, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """All rows of one base model and one set of tasks."""

    model: ModelRecord
    columns: tuple[Column, ...]
    rows: tuple[Row, ...] = field(default=())

    def metrics(self) -> tuple[Column, ...]:
        """Every task and metric that some row has, headline metrics first within their task."""
        found = dict.fromkeys(key for row in self.rows for key in row.scores)
        order = {column.task: index for index, column in enumerate(self.columns)}
        headline = {(column.task, column.metric) for column in self.columns}
        keys = sorted(found, key=lambda key: (order.get(key[0], len(order)), key not in headline))
        return tuple(Column(task, metric) for task, metric in keys)


def compare(records: Sequence[RunRecord]) -> list[Comparison]:
    """One comparison for each base model and set of tasks, in the order of first appearance."""
    groups: dict[tuple[object, ...], list[RunRecord]] = {}
    for record in records:
        key = (record.model.id, record.model.parameters, _columns(record))
        groups.setdefault(key, []).append(record)
    return [_comparison(group) for group in groups.values()]


def columns_of(scores: Mapping[str, Iterable[str]]) -> tuple[Column, ...]:
    """The tasks of `scores` with their headline metrics."""
    pairs = ((task, headline_metric(metrics)) for task, metrics in scores.items())
    return tuple(Column(task, metric) for task, metric in pairs if metric is not None)


def _columns(record: RunRecord) -> tuple[Column, ...]:
    """The tasks of a record, from any of its models that was evaluated."""
    return columns_of(record.scores.pruned or record.scores.dense_tuned or record.scores.dense or {})


def _comparison(records: list[RunRecord]) -> Comparison:
    rows = [row for role in ("dense", "dense_tuned") if (row := _reference_row(records, role)) is not None]
    settings: dict[str, dict[int, RunRecord]] = {}
    for record in records:
        settings.setdefault(_setting(record), {}).setdefault(record.seed, record)
    groups = [list(by_seed.values()) for by_seed in settings.values()]
    labels = _labels([group[0] for group in groups])
    rows += [_pruned_row(group, label) for group, label in zip(groups, labels, strict=True)]
    return Comparison(records[0].model, _columns(records[0]), tuple(rows))


def _reference_row(records: list[RunRecord], role: Literal["dense", "dense_tuned"]) -> Row | None:
    """The dense or the tuned dense model, with one value for each seed, however many records contain it."""
    by_seed: dict[int, ScoreRecord] = {}
    for record in records:
        if getattr(record.scores, role) is not None:
            by_seed.setdefault(record.seed, record.scores)
    if not by_seed:
        return None
    found = [getattr(scores, role) for scores in by_seed.values()]
    references = [scores.dense_tuned for scores in by_seed.values()]
    pairs = zip(found, references, strict=True)
    relatives = [relative_performance(one, other)["mean"] if other else None for one, other in pairs]
    label = "dense" if role == "dense" else "dense + LoRA"
    return Row(label, role, _cells(found), Cell(1.0), _cell(relatives), tuple(sorted(by_seed)))


def _pruned_row(records: list[RunRecord], label: str) -> Row:
    found = [record.scores.pruned for record in records if record.scores.pruned is not None]
    return Row(
        label=label,
        role="pruned",
        scores=_cells(found),
        kept_total=Cell.over([record.parameters.share_total for record in records]),
        relative=_cell([r.relative_performance.mean if r.relative_performance else None for r in records]),
        seeds=tuple(sorted(record.seed for record in records)),
    )


def _cells(found: Sequence[Scores]) -> dict[tuple[str, str], Cell]:
    values: dict[tuple[str, str], list[float]] = {}
    for scores in found:
        for task, metrics in scores.items():
            for metric, value in metrics.items():
                values.setdefault((task, metric), []).append(value)
    return {key: Cell.over(numbers) for key, numbers in values.items()}


def _cell(values: Sequence[float | None]) -> Cell | None:
    """The cell of `values`; None if a seed has no value, because a mean over the others would look too good."""
    known = [value for value in values if value is not None]
    return Cell.over(known) if known and len(known) == len(values) else None


def _setting(record: RunRecord) -> str:
    """The settings of a record except its seed."""
    parts = [record.label, record.method.model_dump(), record.space, record.budget.model_dump()]
    return json.dumps([*parts, record.training.steps, record.training.recover_steps], sort_keys=True, default=str)


def _labels(records: Sequence[RunRecord]) -> list[str]:
    """A short name for each record: its method, and the settings in which others of that method differ."""
    details = {id(record): _details(record) for record in records}
    labels = []
    for record in records:
        rivals = [other for other in records if other.method.name == record.method.name and other.label is None]
        differing = [
            text
            for key, text in details[id(record)].items()
            if len({details[id(other)].get(key) for other in rivals}) > 1
        ]
        labels.append(record.label or base_label(record) + (f" ({', '.join(differing)})" if differing else ""))
    return labels


def base_label(record: RunRecord) -> str:
    """The method's name, with "+ LoRA" if all tuning came after the cut."""
    is_two_stage = record.training.recover_steps > 0 and record.training.steps == 0
    name = record.method.name
    return f"{name} + LoRA" if is_two_stage else name


def _details(record: RunRecord) -> dict[str, str]:
    """Settings in which two runs of one method may differ, as parts of labels."""
    budget = record.budget
    details = {
        "space": record.space,
        "keep": f"keep {percent_text(budget.keep, 0)} of {budget.of}",
        "multiple_of": alignment_text(budget.multiple_of),
        "per_layer": f"{budget.per_layer} widths",
        "steps": f"{record.training.steps} steps before the cut",
        "recover": f"{record.training.recover_steps} steps after the cut",
    }
    return details | {f"method.{key}": f"{key}={value}" for key, value in record.method.hyper_parameters.items()}
