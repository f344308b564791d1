"""`record.json`: the numbers of one run, versioned and typed; tables are made from it without the model."""

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, TypeAdapter, field_validator

from tuneprune.errors import DataError, wrap_errors
from tuneprune.report.json_files import OpenSection, Section, Stored
from tuneprune.report.numbers import percent_text
from tuneprune.report.run.costs import SpeedRecord, Spread
from tuneprune.report.run.findings import BadNumbers, Warned
from tuneprune.report.run.proof import LoraResidue, Parameters, Proof

Scores = dict[str, dict[str, float]]
SHOWN = 3
"""How many training records a sentence names."""


def load_scores(path: Path) -> dict[str, Scores]:
    """The scores of the models that a run has evaluated so far, by name; empty if the file does not exist.

    Raises:
        DataError: a damaged file.
    """
    if not path.exists():
        return {}
    with wrap_errors(f"{path} cannot be read as scores (delete it to evaluate again)", DataError):
        return TypeAdapter(dict[str, Scores]).validate_json(path.read_bytes())


class MethodRecord(OpenSection):
    """The method's name and, as further fields, its hyper-parameters as in the run file."""

    name: str

    @property
    def hyper_parameters(self) -> dict[str, Any]:
        """All fields except the name."""
        return dict(self.model_extra or {})


class BudgetRecord(Section):
    """How much was to be kept, and what it counts."""

    keep: float
    of: Literal["total", "prunable", "bytes", "latency"]
    multiple_of: int | Literal["auto"] = 1
    per_layer: Literal["free", "uniform"] = "free"
    min_keep: float = Field(default=0.0, description="least share of its units that every group keeps")
    at_most: str | None = Field(default=None, description="the amount that was requested; `keep` is its share")
    protect: list[int | str] = Field(default=[], description="layers, kinds and groups that were not pruned")
    widths: dict[str, int] | None = Field(default=None, description="units to keep, by kind or group")
    phase: str | None = None
    batch_size: int | None = None


class ModelRecord(OpenSection):
    """The dense model the run started from."""

    id: str = Field(description="hub id or folder, as the user named it")
    family: str
    parameters: int
    path: str | None = Field(default=None, description="the folder it was read from; None for a model of the hub")
    adapter: str | None = Field(default=None, description="the user's LoRA adapter that was merged into it first")

    @property
    def short_name(self) -> str:
        """The last part of the id: short enough for a table, and without local folders."""
        return last_part(self.id)

    @property
    def adapter_name(self) -> str:
        """The last part of the adapter's id or folder; empty without an adapter."""
        return last_part(self.adapter or "")


def last_part(name: str) -> str:
    """The last part of a path or hub id."""
    return name.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1] or name


class ScoreRecord(Section):
    """Scores by task and metric; a model that was not evaluated has none."""

    dense: Scores | None = None
    dense_tuned: Scores | None = None
    pruned: Scores | None = None

    @field_validator("dense", "dense_tuned", "pruned")
    @classmethod
    def _no_scores_is_none(cls, value: Scores | None) -> Scores | None:
        return value or None


class RelativePerformance(OpenSection):
    """Pruned over dense tuned, inverse for perplexity; 1 = nothing lost, None = no reference."""

    mean: float | None
    tasks: dict[str, float | None]


class MemoryRecord(OpenSection):
    """Memory of the process that did the tuning."""

    peak_bytes: int | None = None


class EnvironmentRecord(OpenSection):
    """Machine and versions of the run."""

    python: str | None = None
    torch: str | None = None
    transformers: str | None = None
    peft: str | None = None
    platform: str | None = None
    cpu: str | None = None
    threads: int | None = None
    device: str | None = None
    commit: str | None = None


class LatencyRecord(Section):
    """The pruned model's time over the dense one's: by the budget's latency table, and measured afterwards."""

    what: str
    table_share: float
    measured_share: Spread | None = Field(default=None, description="None if speed was not measured")

    @property
    def sentence(self) -> str:
        """Both shares in a sentence."""
        said = f"By the latency table, {percent_text(self.table_share)} of the dense model's {self.what} is left"
        if self.measured_share is None:
            return f"{said}; speed was not measured."
        found = self.measured_share
        spread = f"{percent_text(found.low)} to {percent_text(found.high)}"
        return f"{said}; measured on the whole models: {percent_text(found.median)} ({spread})."


class Width(Section):
    """The width of a group: units kept, of how many."""

    kind: str
    kept: int
    size: int

    @property
    def share(self) -> float:
        """Kept over size."""
        return self.kept / self.size if self.size else 0.0


class TrainingRecord(OpenSection):
    """Steps and incidents of the tuning; steps before and after the cut are counted separately."""

    steps: int = 0
    recover_steps: int = 0
    skipped_steps: int = Field(default=0, description="steps whose loss or gradient was not finite")
    truncated_records: int = Field(default=0, description="training items shortened to the maximum length")
    lora_residue: LoraResidue | None = None
    bad_numbers: dict[str, dict[str, int]] = Field(
        default_factory=dict, description="steps and calibration batches that were skipped, by stage and kind"
    )
    bad_examples: list[BadNumbers] = Field(default_factory=list[BadNumbers], description="the first of them")
    warnings: list[Warned] = Field(default_factory=list[Warned], description="findings of the checks that watch a run")

    @property
    def bad_sentences(self) -> list[str]:
        """Steps that were skipped, in a sentence."""
        counts = [
            f"{count} x {kind} ({stage})" for stage, kinds in self.bad_numbers.items() for kind, count in kinds.items()
        ]
        first = [
            f"first in step {one.step} ({one.stage}): {one.what}; records {', '.join(one.batch[:SHOWN]) or 'unknown'}"
            for one in self.bad_examples[:1]
        ]
        return [f"skipped because numbers were not finite: {', '.join(counts)}; {first[0]}"] if first else []


class ReferenceRecord(Stored):
    """Scores of the dense model and, tuned in the same way with one seed, of the reference for runs with that seed."""

    what: ClassVar[str] = "reference record"

    seed: int
    scores: ScoreRecord
    time: dict[str, float] = Field(default_factory=dict, description="seconds by stage")
    memory: MemoryRecord = MemoryRecord()


class RunRecord(Stored):
    """One run: its settings, what was kept, its scores and its costs."""

    what: ClassVar[str] = "run record"

    label: str | None = Field(default=None, description="name in tables; made from method and settings if absent")
    created: str | None = Field(default=None, description="ISO 8601 date and time")
    method: MethodRecord
    space: str
    budget: BudgetRecord
    seed: int
    model: ModelRecord
    data: dict[str, Any] = Field(default_factory=dict, description="counts, hashes, overlap between splits")
    parameters: Parameters
    scores: ScoreRecord = ScoreRecord()
    relative_performance: RelativePerformance | None = None
    time: dict[str, float] = Field(default_factory=dict, description="seconds by stage: tune_s, plan_s, ...")
    memory: MemoryRecord = MemoryRecord()
    speed: SpeedRecord | None = None
    latency: LatencyRecord | None = Field(default=None, description="if the budget counts time")
    environment: EnvironmentRecord = EnvironmentRecord()
    widths: dict[str, Width] = Field(default_factory=dict)
    training: TrainingRecord = TrainingRecord()
    proof: Proof | None = None
