"""Evaluation tasks, and suites of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tuneprune.data.bad_records import LeftOut
from tuneprune.data.chat_template import SystemRole
from tuneprune.data.examples import Example
from tuneprune.data.prompts import TASKS, Kind
from tuneprune.data.sources import SourceConfig, Split, read_source
from tuneprune.system.paths import DataPath
from tuneprune.system.yaml_files import RawYaml

if TYPE_CHECKING:  # costs seconds to import
    from transformers import PreTrainedTokenizerBase

METRICS: Mapping[Kind, tuple[str, ...]] = {
    "perplexity": ("perplexity", "nats_per_byte"),
    "nli": ("accuracy",),
    "qa": ("macro_f1", "accuracy"),
    "multiple_choice": ("macro_f1", "accuracy"),
    "summary": ("rougeL", "rouge1", "rouge2"),
}
"""Metrics of every kind of task; the first is its headline metric."""


class TaskSpec(BaseModel):
    """One task to evaluate: a named source, or a path with records of the same kind."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(default="", description="name in tables; by default the source's or the file's")
    kind: Kind = Field(description="how it is asked and scored; named sources have their own")
    source: str | None = Field(default=None, description="a named set, or a hub id")
    path: DataPath | None = Field(default=None, description="a file, or a folder with one file per split")
    split: Split | None = Field(default=None, description="which part; by default test")
    limit: Annotated[int, Field(gt=0)] | None = Field(
        default=None, description="at most this many items, evenly spaced"
    )
    max_new_tokens: Annotated[int, Field(gt=0)] = Field(default=64, description="length limit of summaries, in tokens")
    fields: dict[str, str] = Field(default_factory=dict, description="our field name: the data's column name")

    @model_validator(mode="before")
    @classmethod
    def _filled(cls, values: RawYaml) -> RawYaml:
        if not isinstance(values, dict):
            return values
        source, path = str(values.get("source") or ""), str(values.get("path") or "")
        task = TASKS.get(source)
        if task is not None and values.get("kind", task.kind) != task.kind:
            raise ValueError(f"the source `{source}` is of kind `{task.kind}`, not `{values['kind']}`")
        known = {"kind": task.kind} if task is not None else {}
        return known | values | {"name": values.get("name") or source or Path(path).stem}

    @model_validator(mode="after")
    def _one_origin(self) -> "TaskSpec":
        self.source_config()
        return self

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics of this task, its headline metric first."""
        return METRICS[self.kind]

    def source_config(self) -> SourceConfig:
        """The source this task reads."""
        named = self.source in TASKS
        return SourceConfig(
            path=self.path,
            source=self.source,
            split=self.split,
            kind=None if named else self.kind,
            limit=self.limit,
            fields=self.fields,
        )


def _task(source: str, limit: int | None = None, max_new_tokens: int = 64) -> TaskSpec:
    return TaskSpec(source=source, kind=TASKS[source].kind, limit=limit, max_new_tokens=max_new_tokens)


SUITES: Mapping[str, tuple[TaskSpec, ...]] = {
    "healthcare": tuple(map(_task, ("openstax_anatomy", "rqe", "pubmedqa", "rqe_question_summary"))),
    "legal": (
        _task("dc_code"),
        _task("us_bills_pd"),
        _task("casehold"),
        _task("billsum", max_new_tokens=256),
        _task("dc_code_heading", max_new_tokens=32),
    ),
    "general": (_task("wikitext2"), _task("snli", limit=1000)),
    "clinic": tuple(map(_task, ("clinic_text", "clinic_nli", "clinic_qa", "clinic_summary"))),
}


def load_task(
    spec: TaskSpec,
    tokenizer: "PreTrainedTokenizerBase",
    left_out: LeftOut | None = None,
    system_role: SystemRole = "fold",
) -> list[Example]:
    """The items of a task, worded as in training; unusable items are refused, and blank items left out.

    Raises:
        ConfigError: an unknown source.
        DataError: missing or unusable data.
    """
    return read_source(spec.source_config(), tokenizer, "test", left_out, system_role)
