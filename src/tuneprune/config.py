"""The run file: one schema, read from YAML, every mistake told in one sentence."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, Field, SerializeAsAny, ValidationError, field_validator, model_validator

from tuneprune import documents, methods
from tuneprune.data import DataConfig
from tuneprune.errors import ConfigError, TunePruneError, printable, suggest
from tuneprune.evaluate import EvaluateConfig
from tuneprune.methods.base import Method
from tuneprune.structure.budget import Budget
from tuneprune.structure.spaces import SPACES
from tuneprune.train import TuneConfig

SHARED = {"data", "tune", "evaluate", "export", "seed", "deterministic"}
"""Sections of a run file that are not about pruning."""
DETERMINISTIC: Any = Field(
    default=False,
    description="on a GPU, only kernels that give the same bits every time, which may be slower; a CPU's do already",
)


class BaseWithAdapter(BaseModel, frozen=True, extra="forbid"):
    """A base model with a LoRA adapter that is merged into it first."""

    base: str
    adapter: str | None = None


class Compensation(BaseModel, frozen=True, extra="forbid"):
    """What the kept columns of a pruned linear take over from the removed ones, before the cut."""

    name: Literal["none", "obs"] = Field(
        default="none", description="`obs`: the least-squares answer on calibration data, for any method's decision"
    )
    batches: int = Field(default=16, ge=1, description="calibration batches")
    damping: float = Field(default=1e-4, ge=0, description="ridge, in units of the kept inputs' mean square")


class RunConfig(BaseModel, frozen=True, extra="forbid"):
    """One run: which model, what to keep, how to decide, what to tune and evaluate on."""

    model: BaseWithAdapter = Field(description="folder or hub id; or {base, adapter}")
    space: str = Field(default="width", description="what may be removed: " + ", ".join(SPACES))
    budget: Budget = Budget()
    method: SerializeAsAny[Method] = Field(description="{name, ...hyper-parameters}")
    data: DataConfig
    compensate: Compensation = Field(default=Compensation(), description="none, obs, or {name, batches, damping}")
    tune: TuneConfig = TuneConfig()
    recover: TuneConfig | None = Field(
        default=None,
        description="a second tuning, of the smaller model; keys left out are as in `tune`, which is also what one-shot"
        " methods spend by default",
    )
    evaluate: EvaluateConfig
    export: list[str] = Field(
        default=["hf"], description="`hf` and further targets, as name or name:option=value (`tuneprune targets`)"
    )
    reference: bool = Field(default=True, description="also tune the dense model alike, for relative performance")
    speed: bool = Field(default=True, description="measure speed and memory before and after")
    seed: int = Field(default=0, ge=0)
    deterministic: bool = DETERMINISTIC

    @model_validator(mode="before")
    @classmethod
    def _recover_like_tune(cls, values: Any) -> Any:  # noqa: ANN401  (raw YAML)
        sections: list[Any] = [values.get(name) for name in ("tune", "recover")] if isinstance(values, dict) else []
        if all(isinstance(section, dict) for section in sections) and sections:
            return values | {"recover": sections[0] | sections[1]}
        return values

    @field_validator("model", mode="before")
    @classmethod
    def _plain_model(cls, value: Any) -> Any:  # noqa: ANN401  (raw YAML)
        return {"base": str(value)} if isinstance(value, str | Path) else value

    @field_validator("compensate", mode="before")
    @classmethod
    def _named_compensation(cls, value: Any) -> Any:  # noqa: ANN401  (raw YAML)
        return {"name": value} if isinstance(value, str) else value

    @field_validator("method", mode="before")
    @classmethod
    def _named_method(cls, value: Any) -> Any:  # noqa: ANN401  (raw YAML)
        if isinstance(value, str):
            value = {"name": value}
        return methods.build(value) if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _space_suits(self) -> "RunConfig":
        if self.space not in SPACES:
            raise ConfigError(
                f"space: unknown space `{self.space}`; known spaces are {', '.join(SPACES)}."
                + suggest(self.space, SPACES)
            )
        if self.space not in self.method.spaces:
            able = ", ".join(name for name, method in methods.registry().items() if self.space in method.spaces)
            raise ConfigError(
                f"method `{self.method.title}` does not support space `{self.space}`;"
                f" it supports {', '.join(self.method.spaces)}, and methods for `{self.space}` are {able}."
            )
        return self

    @model_validator(mode="after")
    def _one_length(self) -> "RunConfig":
        if self.recover is not None and self.recover.max_length != self.tune.max_length:
            raise ConfigError(
                f"recover.max_length={self.recover.max_length} differs from tune.max_length={self.tune.max_length}, but"
                " both read the same rows. Leave recover.max_length out."
            )
        return self

    def to_yaml(self) -> str:
        """The resolved run file, defaults included."""
        content = self.model_dump(mode="json")
        content["method"] = {"name": self.method.title, **content["method"]}
        return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


class RecoverConfig(BaseModel, frozen=True, extra="forbid"):
    """One tuning of a model as it is: the sections of a run file that have nothing to do with pruning."""

    model: str
    data: DataConfig
    tune: TuneConfig = TuneConfig()
    evaluate: EvaluateConfig
    export: list[str] = ["hf"]
    seed: int = Field(default=0, ge=0)
    deterministic: bool = DETERMINISTIC

    @property
    def recover(self) -> None:
        """No second tuning follows this one."""

    def to_yaml(self) -> str:
        """The resolved settings, defaults included."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def load_run_file(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The run file with `key.path=value` overrides.

    Raises:
        ConfigError: missing or malformed file, unknown key, value out of range.
    """
    return parse(_read(path, overrides), str(path))


def load_recover_file(model: str, path: Path, overrides: Sequence[str] = ()) -> RecoverConfig:
    """What a run file says about tuning and evaluating, for a model that is smaller already.

    Its `recover` section says how to tune, keys left out are as in `tune`; what it says about pruning is passed over.

    Raises:
        ConfigError: missing or malformed file, unknown key, value out of range.
    """
    content = _read(path, overrides)
    options = [content.pop(name, None) or {} for name in ("tune", "recover")]
    kept = {key: value for key, value in content.items() if key not in RunConfig.model_fields.keys() - SHARED}
    kept |= {"model": model, "tune": options[0] | options[1] if all(isinstance(o, dict) for o in options) else options}
    try:
        return RecoverConfig.model_validate(kept)
    except ValidationError as error:
        raise ConfigError(f"{path}: {explain(error, RecoverConfig)}") from error


def _read(path: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """The run file as plain data.

    Raises:
        ConfigError: missing or malformed file, or an override that is none.
    """
    content = documents.load(documents.read_text(path), str(path))
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: a run file is a mapping with the keys {', '.join(RunConfig.model_fields)}.")
    for override in overrides:
        _override(content, override)
    return content


def parse(content: dict[str, Any], origin: str) -> RunConfig:
    """A run config from plain data.

    Raises:
        ConfigError: says the key, what it may be, and what was given.
    """
    try:
        return RunConfig.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"{origin}: {explain(error, RunConfig)}") from error


def explain(error: ValidationError, schema: type[BaseModel]) -> str:
    """The first mistake of a validation as one sentence; unknown keys come with the nearest known one."""
    errors = error.errors()
    first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    place = ".".join(printable(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = _fields_at(schema, [part for part in first["loc"][:-1] if isinstance(part, str)])
        listed = f"; possible keys are {', '.join(known)}" if known else ""
        return f"unknown key `{place}`{listed}.{suggest(str(first['loc'][-1]), known)}"
    if first["type"] == "missing":
        return f"`{place}` is missing. Add it to the run file."
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, TunePruneError):
        return str(cause)
    message = first["msg"].removeprefix("Value error, ")
    given = "" if first["type"] == "value_error" else f", got {first['input']!r:.80}"
    return f"`{place}`: {message}{given}." if place else f"{message}."


def _fields_at(schema: type[BaseModel], path: Sequence[str]) -> list[str]:
    """Field names of the nested model at `path`, empty where there is none."""
    for part in path:
        field = schema.model_fields.get(part)
        if field is None:
            return []
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())]
        found = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        if not found:
            return []
        schema = found[0]
    return list(schema.model_fields)


def _override(content: dict[str, Any], override: str) -> None:
    """Set one `key.path=value` in place; the value is read as YAML."""
    path, separator, text = override.partition("=")
    if not separator or not path:
        raise ConfigError(f"--set {override}: write it as key.path=value, such as budget.keep=0.5.")
    value = documents.load(text, f"--set {override:.80}")
    *parents, leaf = path.split(".")
    for parent in parents:
        inner = content.setdefault(parent, {})
        if parent in ("model", "method", "compensate") and isinstance(inner, str):
            inner = content[parent] = {"base" if parent == "model" else "name": inner}
        if inner is None:
            inner = content[parent] = {}
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {override}: `{parent}` is not a section.")
        content = inner
    content[leaf] = value
