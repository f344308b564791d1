"""How to tune: the `tune` and `recover` sections of a run file."""

from typing import Literal

from pydantic import BaseModel, Field


class LoraOptions(BaseModel, frozen=True, extra="forbid"):
    """LoRA on every linear of every block."""

    rank: int = Field(default=8, ge=1)
    alpha: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="scaling = alpha / rank; by default alpha = rank"
    )
    dropout: float = Field(default=0.0, ge=0, lt=1)


class TuneConfig(BaseModel, frozen=True, extra="forbid"):
    """One tuning: its length, batches and optimiser."""

    steps: int = Field(default=300, ge=1, description="optimiser steps")
    batch_size: int = Field(default=16, ge=1, description="rows in a step, over all processes")
    micro_batch_size: int | None = Field(
        default=None, ge=1, description="rows in one forward of a process; accumulates"
    )
    max_length: int = Field(default=256, ge=8, description="tokens in a row")
    learning_rate: float = Field(default=1e-3, gt=0, allow_inf_nan=False)
    final_learning_rate_share: float = Field(default=0.1, ge=0, le=1, description="where the cosine ends")
    warmup_share: float = Field(default=0.03, ge=0, lt=1, description="share of the steps with a rising learning rate")
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
