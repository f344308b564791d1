"""What tuning a smaller model on says about itself: its record, its card and its table."""

from typing import Any, ClassVar, Literal

import yaml
from pydantic import Field
from rich.table import Table

from tuneprune.errors import printable
from tuneprune.report.json_files import SCHEMA, Section, Stored
from tuneprune.report.numbers import count_text, score_text
from tuneprune.report.run.card import MARKS, base_entry, failure_warning, loading_section
from tuneprune.report.run.proof import Proof
from tuneprune.report.run.record import EnvironmentRecord, MemoryRecord, ModelRecord, Scores, TrainingRecord
from tuneprune.report.run.result_table import code_span, escape_markdown, plain


class BeforeAndAfter(Section):
    """Scores by task and metric of the model as it was and as it is now."""

    before: Scores
    after: Scores


class RecoverRecord(Stored):
    """One tuning of a model whose shape stays: what it scores before and after, and what that took."""

    what: ClassVar[str] = "record of a tuning"

    schema_version: Literal[1] = Field(default=SCHEMA, alias="schema")
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
        """What the model is called: the last part of its id, and the run's folder before a plain `model`."""
        parts = [part for part in self.model.id.replace("\\", "/").split("/") if part not in ("", ".", "..")]
        *parents, last = parts or [self.model.id]
        return f"{parents[-1]}/{last}" if last == "model" and parents else last


def recover_rows(record: RecoverRecord) -> list[tuple[str, str, str, str]]:
    """Task, metric, and the scores before and after, as a table shows them."""
    return [
        (task, metric, score_text(metric, value), score_text(metric, record.scores.after[task][metric]))
        for task, metrics in record.scores.before.items()
        for metric, value in metrics.items()
    ]


def recover_table(record: RecoverRecord) -> Table:
    """The scores before and after, for a terminal."""
    title = plain(f"{record.name}: {count_text(record.model.parameters)} parameters")
    table = Table("task", "metric", title=title)
    for side in ("before", "after"):
        table.add_column(side, justify="right")
    for row in recover_rows(record):
        table.add_row(*map(plain, row))
    return table


def recover_card(record: RecoverRecord) -> str:
    """The card of the tuned model as Markdown with YAML front matter."""
    name, proof = record.name, record.proof
    tags = ["tuneprune", "lora", printable(record.model.family)]
    header: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    header |= base_entry(record.model) | {"tags": tags}
    size, family = count_text(record.model.parameters), escape_markdown(record.model.family)
    lines = [
        "---\n" + yaml.safe_dump(header, sort_keys=False, allow_unicode=True) + "---",
        failure_warning(proof.checks_of_files()),
        "",
        f"# {escape_markdown(name)}, tuned on",
        "",
        f"{code_span(name)} ({family}, {size} parameters) after more LoRA tuning on domain data by"
        f" tuneprune: {record.training.recover_steps} steps. Its shape is as it was; LoRA is merged.",
        "",
        "## Scores",
        "",
        "| task | metric | before | after |",
        "| :--- | :--- | ---: | ---: |",
        *("| " + " | ".join(map(escape_markdown, row)) + " |" for row in recover_rows(record)),
        "",
        loading_section(proof),
        "",
        "## Proof",
        "",
        "Measured on this folder after it was written; see `proof.json`.",
        "",
        *(
            f"- {check.name}: {MARKS[check.passed]} — {escape_markdown(check.detail)}"
            for check in proof.checks_of_files()
        ),
        "",
        "## Licence and limits",
        "",
        f"The licence of {code_span(name)}, and of the model that was made from, applies to it.",
    ]
    return "\n".join(lines) + "\n"
