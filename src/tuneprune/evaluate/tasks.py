"""Configuration of an evaluation, and the tasks with their items."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator
from transformers import PreTrainedTokenizerBase

from tuneprune.data.bad_records import LeftOut
from tuneprune.data.chat_template import SystemRole
from tuneprune.data.examples import Example
from tuneprune.data.prompts import Kind
from tuneprune.data.suites import SUITES, TaskSpec, load_task
from tuneprune.errors import ConfigError, suggest

Positive = Annotated[int, Field(gt=0)]


class EvaluateConfig(BaseModel):
    """The tasks a run is evaluated on: one or more suites, or a list of tasks."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    suite: str | list[str] | None = Field(default=None, description="a suite, or several: " + ", ".join(SUITES))
    tasks: list[TaskSpec] | None = Field(default=None, description="single tasks, instead of a suite")
    limit: Positive | None = Field(default=None, description="at most this many items of every task, evenly spaced")
    batch_size: Positive = Field(default=16, description="sequences in one forward pass")
    max_length: Positive = Field(
        default=2048, description="longest input in tokens; never more than the model's context"
    )

    @model_validator(mode="after")
    def _known(self) -> "EvaluateConfig":
        self.specs()
        return self

    def specs(self) -> tuple[TaskSpec, ...]:
        """The chosen tasks, in order, each with at most `limit` items.

        Raises:
            ConfigError: none or both of `suite` and `tasks`, an unknown suite, or two tasks of one name.
        """
        if (self.suite is None) == (self.tasks is None):
            raise ConfigError(f"evaluate: give either `suite` ({', '.join(SUITES)}) or `tasks`.")
        if self.suite is None:
            chosen = list(self.tasks or ())
        else:
            names = [self.suite] if isinstance(self.suite, str) else self.suite
            chosen = [spec for name in names for spec in _suite(name)]
        if not chosen:
            raise ConfigError(f"evaluate: no task is named. Give a `suite` ({', '.join(SUITES)}) or `tasks`.")
        repeated = next((spec.name for i, spec in enumerate(chosen) if spec.name in {s.name for s in chosen[:i]}), None)
        if repeated is not None:
            raise ConfigError(f"evaluate: two tasks are called `{repeated}`. Give one another `name`, or name it once.")
        return tuple(self._limited(spec) for spec in chosen)

    def _limited(self, spec: TaskSpec) -> TaskSpec:
        limits = [limit for limit in (self.limit, spec.limit) if limit is not None]
        return spec.model_copy(update={"limit": min(limits)}) if limits else spec


def _suite(name: str) -> tuple[TaskSpec, ...]:
    if name not in SUITES:
        raise ConfigError(f"evaluate: no suite `{name}`; there are {', '.join(SUITES)}.{suggest(name, SUITES)}")
    return SUITES[name]


@dataclass(frozen=True)
class LoadedTask:
    """A task with its items."""

    name: str
    kind: Kind
    examples: tuple[Example, ...]
    max_new_tokens: int = 64
    """Longest summary, in tokens."""
    num_blank: int = 0
    """Blank items that were left out."""


def chances(tasks: Iterable[LoadedTask]) -> dict[str, float]:
    """The accuracy of guessing, by task; tasks without choices are left out."""
    found: dict[str, float] = {}
    for task in tasks:
        shares = [1 / len(example.choices) for example in task.examples if example.choices]
        if shares:
            found[task.name] = sum(shares) / len(shares)
    return found


def load_tasks(
    config: EvaluateConfig, tokenizer: PreTrainedTokenizerBase, system_role: SystemRole = "fold"
) -> list[LoadedTask]:
    """Every task of `config` with its items.

    Args:
        system_role: what to do with a system text where the chat template has no role for it.

    Raises:
        ConfigError: an unknown source.
        DataError: missing, unusable or empty data.
    """
    return [_loaded(spec, tokenizer, system_role) for spec in config.specs()]


def _loaded(spec: TaskSpec, tokenizer: PreTrainedTokenizerBase, system_role: SystemRole) -> LoadedTask:
    left_out = LeftOut()
    items = tuple(load_task(spec, tokenizer, left_out, system_role))
    return LoadedTask(spec.name, spec.kind, items, spec.max_new_tokens, left_out.total)
