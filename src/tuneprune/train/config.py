"""Options of a tuning: the `tune` and `recover` sections of a run file."""

import math
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from tuneprune.budget.amounts import Share

ALL_LINEAR = "all-linear"


def _one_or_more(value: object) -> object:
    if not isinstance(value, str) or value == ALL_LINEAR:
        return value
    return [name.strip() for name in value.split(",")]


class LoraOptions(BaseModel, frozen=True, extra="forbid"):
    """LoRA on linears of every block; all of them by default."""

    rank: int = Field(default=64, ge=1)
    alpha: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="scaling = alpha / rank; by default alpha = rank"
    )
    dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: Annotated[
        Literal["all-linear"] | Annotated[list[str], Field(min_length=1)], BeforeValidator(_one_or_more)
    ] = Field(
        default=ALL_LINEAR,
        description="which linears of the blocks have LoRA: `all-linear`, or names or ends of names, such as q_proj",
    )


class TuneConfig(BaseModel, frozen=True, extra="forbid"):
    """One tuning: its length, batches and optimiser."""

    steps: int = Field(default=300, ge=1, description="optimiser steps")
    epochs: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="instead of `steps`: passes over the training rows, rounded up to whole steps",
    )
    batch_size: int = Field(default=16, ge=1, description="rows in a step, over all processes")
    micro_batch_size: int | None = Field(
        default=None, ge=1, description="rows in one forward of a process; accumulates"
    )
    max_length: int = Field(default=256, ge=8, description="tokens in a row")
    train: Literal["lora", "blocks", "all"] = Field(
        default="lora",
        description="what is tuned: LoRA, every parameter of the blocks, or every parameter; while a method decides it"
        " is LoRA in any case",
    )
    learning_rate: float = Field(default=1e-3, gt=0, allow_inf_nan=False)
    final_learning_rate_share: Share = Field(default=0.1, ge=0, le=1, description="where the cosine ends")
    warmup_share: Share = Field(default=0.03, ge=0, lt=1, description="share of the steps with a rising learning rate")
    weight_decay: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    clip: float = Field(default=1.0, gt=0, description="largest gradient norm")
    lora: LoraOptions = LoraOptions()
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto", description="autocast; `auto` is bf16 on a GPU that has it, fp32 elsewhere"
    )
    gradient_checkpointing: bool = Field(
        default=False, description="recompute activations in backward: less memory, slower"
    )
    log_every: int = Field(default=10, ge=1, description="steps between two lines of metrics.jsonl")
    checkpoint_every: int = Field(default=100, ge=1, description="steps between two checkpoints")
    max_skipped: int = Field(default=10, ge=1, description="non-finite steps in a row before the run stops")
    trackers: list[str] = Field(default=[], description="accelerate trackers by name, such as tensorboard")

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.epochs is not None and "steps" in self.model_fields_set:
            raise ValueError("`steps` and `epochs` both give the length; write one of them")
        return self

    @model_serializer(mode="wrap")
    def _one_length_only(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = serialise(self)
        content.pop("steps" if self.length_key == "epochs" else "epochs")
        return content

    @property
    def length_key(self) -> str:
        """The key that gives the length: `steps` or `epochs`."""
        return "steps" if self.epochs is None else "epochs"

    def on(self, rows: int) -> "TuneConfig":
        """This tuning with its length in steps, for data with this many rows per epoch."""
        if self.epochs is None:
            return self
        steps = math.ceil(self.epochs * rows / self.batch_size - 1e-9)
        return self.model_copy(update={"epochs": None, "steps": max(1, steps)})

    def learning_rate_at(self, step: int, first: int = 0) -> float:
        """The rate of step `step`, counted from 0: linear warm-up to the peak, then a cosine to its final share.

        Args:
            first: the first step of the smaller model. Its optimiser starts anew, so the rate rises again, to the value
                that the one cosine over the whole run has by then.
        """
        peak, floor = self.learning_rate, self.final_learning_rate_share
        warmup = max(1, round(self.warmup_share * self.steps))
        progress = max(0, step - warmup) / max(1, self.steps - warmup)
        rate = peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))
        return rate * min(1.0, (step - first + 1) / warmup)
