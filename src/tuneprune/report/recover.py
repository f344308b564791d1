"""The record, the model card and the table of `tuneprune recover`, which tunes a pruned model again."""

from typing import Any, ClassVar, Literal

from pydantic import Field
from rich.table import Table

from tuneprune.report.json_files import Section, Stored
from tuneprune.report.numbers import count_text, score_text
from tuneprune.report.run.card import failure_warning, front_matter, loading_section, proof_section
from tuneprune.report.run.proof import Proof
from tuneprune.report.run.record import EnvironmentRecord, MemoryRecord, ModelRecord, Scores, TrainingRecord
from tuneprune.report.text_table import TextTable, code_span, escape_markdown


class BeforeAndAfter(Section):
    """Scores by task and metric, before and after the tuning."""

    before: Scores
    after: Scores


class RecoverRecord(Stored):
    """One tuning of a model without changing its shape: scores before and after, and costs."""

    what: ClassVar[str] = "record of a tuning"

    kind: Literal["recover"] = "recover"
    created: str | None = Field(default=None, description="ISO 8601 date and time")
    seed: int
    model: ModelRecord = Field(description="the smaller model that was tuned")
    data: dict[str, Any] = Field(default_factory=dict, description="counts, hashes, overlap between splits")
    scores: BeforeAndAfter
    time: dict[str, float] = Field(default_factory=dict, description="seconds by stage")
    memory: MemoryRecord = MemoryRecord()
    environment: EnvironmentRecord = EnvironmentRecord()
    training: TrainingRecord = TrainingRecord()
    proof: Proof

    @property
    def name(self) -> str:
        """The last part of the model's id; with the run's folder before it if that is just `model`."""
        parts = [part for part in self.model.id.replace("\\", "/").split("/") if part not in ("", ".", "..")]
        *parents, last = parts or [self.model.id]
        return f"{parents[-1]}/{last}" if last == "model" and parents else last


def _score_table(record: RecoverRecord) -> TextTable:
    rows = [
        (task, metric, score_text(metric, value), score_text(metric, record.scores.after[task][metric]))
        for task, metrics in record.scores.before.items()
        for metric, value in metrics.items()
    ]
    title = f"{record.name}: {count_text(record.model.parameters)} parameters"
    return TextTable(("task", "metric", "before", "after"), tuple(rows), title, left=2)


def recover_table(record: RecoverRecord) -> Table:
    """The scores before and after, for a terminal."""
    return _score_table(record).rich()


def recover_card(record: RecoverRecord) -> str:
    """The card of the tuned model as Markdown with YAML front matter."""
    name, checks, steps = record.name, record.proof.checks_of_files(), record.training.recover_steps
    size, family = count_text(record.model.parameters), escape_markdown(record.model.family)
    parts = [
        front_matter(record.model, ["tuneprune", "lora", record.model.family]),
        failure_warning(checks),
        f"# {escape_markdown(name)}, fine-tuned",
        f"{code_span(name)} ({family}, {size} parameters) after {steps} more steps of tuning on domain data by"
        " tuneprune. Its shape is unchanged.",
        "\n".join(["## Scores", "", *_score_table(record).markdown()]),
        loading_section(record.proof),
        proof_section(checks),
        "## Licence and limits",
        f"The licence of {code_span(name)}, and of the model that it was made from, applies to this model.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"
