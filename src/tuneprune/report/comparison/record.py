"""`comparison.json`: the cells of a comparison and their means; its tables and its page are made from it."""

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import ClassVar, Literal

from pydantic import Field

from tuneprune.report.comparison.intervals import Estimate, paired
from tuneprune.report.json_files import Section, Stored
from tuneprune.report.run.record import (
    EnvironmentRecord,
    MethodRecord,
    ModelRecord,
    ReferenceRecord,
    RelativePerformance,
    RunRecord,
    Scores,
)
from tuneprune.report.run.result_rows import Column, columns_of
from tuneprune.scores import headline_metric, relative_performance

Role = Literal["dense", "dense_tuned", "pruned"]
BEFORE_TRAINING = ("begin_s", "plan_s", "reused_s")


class CellRecord(Section):
    """The main numbers of one run of a comparison."""

    name: str = Field(description="the folder of the run")
    label: str = Field(description="the method as requested, with its options")
    method: MethodRecord
    space: str
    keep: float
    seed: int
    steps: int = Field(description="optimiser steps before and after the cut")
    kept_parameters: int
    kept_share: float = Field(description="of all parameters")
    scores: Scores
    relative: RelativePerformance | None = None
    decide_s: float = Field(description="seconds apart from training steps; reused scores count as if computed again")
    train_s: float
    peak_bytes: int | None = None
    bytes_on_disk: int | None = None
    speed: dict[str, float] = Field(description="pruned over dense, by phase and batch size; above 1 = faster")

    @classmethod
    def of(cls, name: str, record: RunRecord) -> "CellRecord":
        """The cell of the run in the folder `name`."""
        time, speed = record.time, record.speed
        return cls(
            name=name,
            label=record.label or record.method.name,
            method=record.method,
            space=record.space,
            keep=record.budget.keep,
            seed=record.seed,
            steps=record.training.steps + record.training.recover_steps,
            kept_parameters=record.parameters.kept_total,
            kept_share=record.parameters.share_total,
            scores=record.scores.pruned or {},
            relative=record.relative_performance,
            decide_s=sum(time.get(key, 0.0) for key in BEFORE_TRAINING),
            train_s=time.get("tune_s", 0.0) + time.get("recover_s", 0.0),
            peak_bytes=record.memory.peak_bytes,
            bytes_on_disk=record.proof.bytes_on_disk.pruned if record.proof else None,
            speed={f"{s.phase}, batch {s.batch_size}": s.ratio.median for s in speed.settings} if speed else {},
        )


class RowRecord(Section):
    """One method at one budget over all its seeds, or a dense reference."""

    label: str
    role: Role
    space: str | None = None
    keep: float = 1.0
    seeds: tuple[int, ...]
    steps: int | None = None
    kept_share: Estimate
    kept_parameters: int
    scores: dict[str, dict[str, Estimate]]
    relative: Estimate | None = None
    difference: Estimate | None = Field(default=None, description="in relative performance to the reference method")
    fluency: Estimate | None = Field(default=None, description="relative performance over the perplexities only")
    fluency_difference: Estimate | None = Field(default=None, description="in fluency to the reference method")
    task_differences: dict[str, Estimate] = Field(default_factory=dict, description="in relative performance, by task")
    decide_s: float | None = None
    train_s: float | None = None
    peak_bytes: int | None = None
    bytes_on_disk: int | None = None
    speed: dict[str, float] = Field(default_factory=dict)


class ComparisonRecord(Stored):
    """All cells, and a row for every method at every budget."""

    what: ClassVar[str] = "comparison record"

    created: str
    model: ModelRecord
    against: str = Field(description="the reference method")
    references: list[ReferenceRecord]
    cells: list[CellRecord]
    rows: list[RowRecord]
    failed: dict[str, str] = Field(default_factory=dict, description="the reason, for every cell that failed")
    environment: EnvironmentRecord = EnvironmentRecord()
    environments: int = Field(default=1, description="how many different machines or sets of versions the cells ran on")

    @property
    def keeps(self) -> list[float]:
        """The budgets, largest first."""
        return sorted({row.keep for row in self.rows if row.role == "pruned"}, reverse=True)

    @property
    def seeds(self) -> list[int]:
        """The seeds of all rows."""
        return sorted({seed for row in self.rows for seed in row.seeds})

    @property
    def columns(self) -> tuple[Column, ...]:
        """The tasks with their headline metrics."""
        return columns_of(self.rows[-1].scores if self.rows else {})

    def at(self, keep: float) -> list[RowRecord]:
        """The rows of one budget, the dense references first."""
        return [row for row in self.rows if row.role != "pruned" or row.keep == keep]

    @classmethod
    def of(
        cls,
        records: Mapping[str, RunRecord],
        references: Sequence[ReferenceRecord],
        against: str,
        failed: Mapping[str, str],
    ) -> "ComparisonRecord":
        """The comparison of complete runs, by the names of their folders; at least one.

        Rows keep the order in which methods and budgets first appear.
        """
        cells = [CellRecord.of(name, record) for name, record in records.items()]
        first = next(iter(records.values()))
        groups: dict[tuple[str, float], dict[int, CellRecord]] = {}
        for cell in cells:
            groups.setdefault((cell.label, cell.keep), {})[cell.seed] = cell
        rows = _reference_rows(references, first)
        for (label, keep), group in groups.items():
            rows.append(_row(group, groups.get((against, keep), {}) if label != against else {}))
        environments = {_machine(record.environment) for record in records.values()}
        return cls(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            model=first.model.model_copy(update={"path": None}),
            against=against,
            references=list(references),
            cells=cells,
            rows=rows,
            failed=dict(failed),
            environment=first.environment,
            environments=len(environments),
        )


def _machine(environment: EnvironmentRecord) -> str:
    """Machine and versions as one text, without the commit of the checkout."""
    return environment.model_copy(update={"commit": None}).model_dump_json()


def _reference_rows(references: Sequence[ReferenceRecord], record: RunRecord) -> list[RowRecord]:
    dense = next((one.scores.dense for one in references if one.scores.dense), None)
    tuned = {one.seed: one.scores.dense_tuned for one in references if one.scores.dense_tuned}
    whole = {"kept_share": Estimate(mean=1.0), "kept_parameters": record.parameters.dense_total}
    rows: list[RowRecord] = []
    if dense:
        seeds = tuple(tuned) or (references[0].seed,)
        relative = _over([relative_performance(dense, scores)["mean"] for scores in tuned.values()])
        scores = _estimates([dense])
        rows.append(RowRecord(label="dense", role="dense", seeds=seeds, scores=scores, relative=relative, **whole))
    if tuned:
        found = [one for one in references if one.seed in tuned]
        rows.append(
            RowRecord(
                label="dense + LoRA",
                role="dense_tuned",
                seeds=tuple(tuned),
                scores=_estimates(list(tuned.values())),
                relative=Estimate(mean=1.0),
                train_s=_mean([one.time["reference_s"] for one in found if "reference_s" in one.time]),
                peak_bytes=_largest([one.memory.peak_bytes for one in found]),
                **whole,
            )
        )
    return rows


def _row(group: Mapping[int, CellRecord], others: Mapping[int, CellRecord]) -> RowRecord:
    """The cells of one method and budget by seed, compared with `others`, those of the reference method."""
    cells = [group[seed] for seed in sorted(group)]
    first = cells[0]
    disk = _mean([cell.bytes_on_disk for cell in cells if cell.bytes_on_disk is not None])

    def difference(of: Callable[[CellRecord], float | None]) -> Estimate | None:
        return paired(_values(group, of), _values(others, of))

    by_task = {task: difference(partial(_task_share, task=task)) for task in next(iter(group.values())).scores}
    return RowRecord(
        label=first.label,
        role="pruned",
        space=first.space,
        keep=first.keep,
        seeds=tuple(sorted(group)),
        steps=first.steps,
        kept_share=Estimate.over([cell.kept_share for cell in cells]),
        kept_parameters=round(sum(cell.kept_parameters for cell in cells) / len(cells)),
        scores=_estimates([cell.scores for cell in cells]),
        relative=_over(list(map(_mean_share, cells))),
        difference=difference(_mean_share),
        fluency=_over(list(map(_fluency, cells))),
        fluency_difference=difference(_fluency),
        task_differences={task: found for task, found in by_task.items() if found is not None},
        decide_s=_mean([cell.decide_s for cell in cells]),
        train_s=_mean([cell.train_s for cell in cells]),
        peak_bytes=_largest([cell.peak_bytes for cell in cells]),
        bytes_on_disk=None if disk is None else round(disk),
        speed={key: _mean([cell.speed[key] for cell in cells if key in cell.speed]) or 0.0 for key in first.speed},
    )


def _mean_share(cell: CellRecord) -> float | None:
    return cell.relative.mean if cell.relative else None


def _task_share(cell: CellRecord, task: str) -> float | None:
    return cell.relative.tasks.get(task) if cell.relative else None


def _fluency(cell: CellRecord) -> float | None:
    """Mean relative performance over the tasks scored by perplexity, which guessing cannot raise."""
    shares = cell.relative.tasks if cell.relative else {}
    fluent = [share for task, share in shares.items() if headline_metric(cell.scores[task]) == "perplexity"]
    known = [share for share in fluent if share is not None]
    return _mean(known) if len(known) == len(fluent) else None


def _values(group: Mapping[int, CellRecord], of: Callable[[CellRecord], float | None]) -> dict[int, float]:
    found = {seed: of(cell) for seed, cell in group.items()}
    return {seed: value for seed, value in found.items() if value is not None}


def _estimates(found: Sequence[Scores]) -> dict[str, dict[str, Estimate]]:
    return {
        task: {metric: Estimate.over([scores[task][metric] for scores in found]) for metric in metrics}
        for task, metrics in found[0].items()
    }


def _over(values: Sequence[float | None]) -> Estimate | None:
    """The estimate from `values`; None if a seed has no value, because a mean over the others would look too good."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    return Estimate.over(known) if known and len(known) == len(values) else None


def _largest(values: Sequence[int | None]) -> int | None:
    return max((value for value in values if value is not None), default=None)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
