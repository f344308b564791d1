"""The schema of the run file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, SerializeAsAny, field_validator, model_validator

from tuneprune import methods
from tuneprune.budget import Budget
from tuneprune.config.mistakes import advice_on
from tuneprune.data import DataConfig
from tuneprune.errors import ConfigError, suggest
from tuneprune.evaluate import EvaluateConfig
from tuneprune.methods.base import Method
from tuneprune.model import location
from tuneprune.structure.spaces import SPACES
from tuneprune.system.yaml_files import RawYaml
from tuneprune.train import TuneConfig

SHARED = {"data", "tune", "evaluate", "export", "seed", "deterministic"}
"""Keys of a run file that are not about pruning."""
Names = Annotated[list[str], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]
"""A list of names, or a single one."""
DETERMINISTIC: Any = Field(
    default=False,
    description="on a GPU, use only kernels that give the same bits every time, which may be slower; on a CPU all do",
)


def like_tune(tune: Mapping[str, Any], recover: Mapping[str, Any]) -> dict[str, Any]:
    """The `recover` section with missing keys from `tune`; `steps` and `epochs` count as one key."""
    lengths = {"steps", "epochs"}
    kept = {key: value for key, value in tune.items() if key not in lengths or not lengths & recover.keys()}
    lora: list[Any] = [section.get("lora") for section in (tune, recover)]
    both = {"lora": {**lora[0], **lora[1]}} if all(isinstance(section, dict) for section in lora) else {}
    return {**kept, **recover, **both}


class BaseWithAdapter(BaseModel, frozen=True, extra="forbid"):
    """A base model with a LoRA adapter that is merged into it first."""

    base: Annotated[str, AfterValidator(location.expand_name)]
    adapter: Annotated[str, AfterValidator(location.expand_name)] | None = None


class Compensation(BaseModel, frozen=True, extra="forbid"):
    """Compensation of the removed columns of a linear by the kept ones, before it is pruned."""

    name: Literal["none", "obs"] = Field(
        default="none", description="`obs`: the least-squares solution on calibration data, for any method's decision"
    )
    batches: int = Field(default=16, ge=1, description="calibration batches")
    damping: float = Field(default=1e-4, ge=0, description="ridge, in units of the kept inputs' mean square")


class RunConfig(BaseModel, frozen=True, extra="forbid"):
    """One run: the model, what to keep, how to decide, and the data for tuning and evaluation."""

    model: BaseWithAdapter = Field(description="folder, GGUF file or hub id; or {base, adapter}")
    space: str = Field(default="width", description="what may be removed: " + ", ".join(SPACES))
    budget: Budget = Budget()
    method: SerializeAsAny[Method] = Field(description="{name, ...hyper-parameters}")
    data: DataConfig
    compensate: Compensation = Field(default=Compensation(), description="none, obs, or {name, batches, damping}")
    tune: TuneConfig = TuneConfig()
    recover: TuneConfig | None = Field(
        default=None,
        description="what differs in the steps after the cut, and so for the dense reference, such as `train`,"
        " `learning_rate` or `lora: {rank: 128}`; missing keys are taken from `tune`",
    )
    evaluate: EvaluateConfig
    export: Names = Field(
        default=["hf"], description="`hf` and further targets, as name or name:option=value (`tuneprune targets`)"
    )
    reference: bool = Field(default=True, description="tune the dense model too, for relative performance")
    speed: bool = Field(default=True, description="measure speed and memory before and after")
    seed: int = Field(default=0, ge=0)
    deterministic: bool = DETERMINISTIC

    @model_validator(mode="before")
    @classmethod
    def _without_empty(cls, values: RawYaml) -> RawYaml:
        if not isinstance(values, dict):
            return values
        needed = {name for name, field in cls.model_fields.items() if field.is_required()}
        given = {name: value for name, value in values.items() if value is not None or name in needed}
        sections: list[Any] = [given.get(name) for name in ("tune", "recover")]
        if all(isinstance(section, dict) for section in sections):
            return given | {"recover": like_tune(*sections)}
        return given

    @field_validator("model", mode="before")
    @classmethod
    def _plain_model(cls, value: RawYaml) -> RawYaml:
        return location.base_and_adapter(str(value)) if isinstance(value, str | Path) else value

    @field_validator("compensate", mode="before")
    @classmethod
    def _named_compensation(cls, value: RawYaml) -> RawYaml:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("method", mode="before")
    @classmethod
    def _named_method(cls, value: RawYaml) -> RawYaml:
        if isinstance(value, str):
            value = {"name": value}
        if not isinstance(value, dict):
            return value
        try:
            return methods.build(value)
        except ConfigError as error:
            unknown = next((key for key in value if str(error).startswith(f"method.{key}: `")), None)
            advice = advice_on(RunConfig, unknown, value[unknown]) if unknown else None
            raise error if advice is None else ConfigError(f"unknown key `method.{unknown}`: {advice}.") from error

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
        if self.recover is None:
            return self
        length = self.tune.length_key
        keys = ((length, self.recover.length_key), ("batch_size", "batch_size"), ("max_length", "max_length"))
        for ours, theirs in keys:
            before, after = getattr(self.tune, ours), getattr(self.recover, theirs)
            if (ours, before) != (theirs, after):
                raise ConfigError(
                    f"recover.{theirs}={after} differs from tune.{ours}={before}, but the steps after the cut continue"
                    f" those before it: tune.{length} counts both. Set tune.{ours}, and leave recover.{theirs} out."
                )
        return self

    def to_yaml(self) -> str:
        """The resolved run file, defaults included."""
        content = self.model_dump(mode="json")
        content["method"] = {"name": self.method.title, **content["method"]}
        return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


class RecoverConfig(BaseModel, frozen=True, extra="forbid"):
    """Tuning a model as it is: the sections of a run file that are not about pruning."""

    model: Annotated[str, AfterValidator(location.expand_name)]
    data: DataConfig
    tune: TuneConfig = TuneConfig()
    evaluate: EvaluateConfig
    export: Names = ["hf"]
    seed: int = Field(default=0, ge=0)
    deterministic: bool = DETERMINISTIC

    @property
    def recover(self) -> None:
        """There is no second tuning."""

    def to_yaml(self) -> str:
        """The resolved settings, defaults included."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
