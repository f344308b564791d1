"""Measured times of a model's parts by their width, as a file with which a decision can be repeated."""

import hashlib
import json
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy
from pydantic import BaseModel, Field, ValidationError, model_validator

from tuneprune.errors import ConfigError
from tuneprune.structure.space import Latency, PruningSpace

Phase = Literal["decode", "prefill"]
TIMED = ("width", "depth")
"""The spaces that change the widths in a table."""
Milliseconds = Annotated[float, Field(ge=0, le=86_400_000, allow_inf_nan=False)]
"""At most a day, which no part of a forward pass takes."""


class Curve(BaseModel, frozen=True, extra="forbid"):
    """The time of one part of a layer by the number of kept units, linear in between."""

    units: list[Annotated[int, Field(le=2**31)]] = Field(
        min_length=1, description="KV groups or MLP channels kept, ascending"
    )
    milliseconds: list[Milliseconds] = Field(
        min_length=1, description="time of one forward pass of the part, never falling"
    )

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if len(self.units) != len(self.milliseconds):
            raise ValueError("units and milliseconds must have the same length")
        if self.units[0] < 1 or any(b <= a for a, b in pairwise(self.units)):
            raise ValueError("units must ascend from 1 or more")
        times = self.milliseconds
        if not times[0] > 0 or any(not b >= a for a, b in pairwise(times)):
            raise ValueError("milliseconds must be above 0 and must not fall where units rise")
        return self

    def nanoseconds(self, size: int) -> tuple[int, ...]:
        """The times with 0 to `size` units; outside the measured range, that of the nearest width."""
        times = numpy.interp(numpy.arange(size + 1), self.units, self.milliseconds)
        return tuple(round(time * 1e6) for time in times.tolist())


class LatencyTable(BaseModel, frozen=True, extra="forbid"):
    """The times of one forward pass of a dense model's parts on one machine, in milliseconds.

    `model` identifies the shapes of the parameters, not their values, so a table is valid for all models of one shape.
    """

    format: Literal[1] = 1
    model: str = Field(description="`shapes_of` the dense model")
    engine: str = Field(description="the program that ran the parts, such as `transformers`")
    phase: Phase = Field(description="decode: one token a row with its cache; prefill: the prompt")
    batch_size: int = Field(ge=1)
    prompt_tokens: int = Field(ge=1)
    device: str
    dtype: str
    threads: int = Field(ge=1)
    fixed_ms: Milliseconds = Field(gt=0, description="embeddings, final norm, head, and other work done once per pass")
    layer_ms: Milliseconds = Field(description="the rest of a layer, besides attention and MLP")
    attention: Curve
    mlp: Curve
    environment: dict[str, str] = Field(default_factory=dict[str, str], description="versions and processor")

    @property
    def what(self) -> str:
        """The measured quantity, in words."""
        return f"{self.phase} latency of {self.engine} at batch size {self.batch_size}"

    @classmethod
    def load(cls, path: Path) -> Self:
        """The table in a file.

        Raises:
            ConfigError: the file is missing, or is not a table.
        """
        try:
            return cls.model_validate(json.loads(path.read_text(encoding="utf8")))
        except OSError as error:
            raise ConfigError(
                f"budget.table: cannot read {path} ({error.strerror}). Name the latency.json of an earlier run, or"
                " leave the table out to have it measured."
            ) from error
        except (ValidationError, ValueError, RecursionError) as error:
            first = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": str(error)}
            place = ".".join(str(part) for part in first["loc"])
            raise ConfigError(
                f"budget.table: {path} is not a latency table ({place + ': ' if place else ''}{first['msg']}). Name the"
                " latency.json of an earlier run, or leave the table out to have it measured."
            ) from error

    def on(self, space: PruningSpace) -> Latency:
        """The time of every group of a space.

        Raises:
            ConfigError: the space removes things that have no times, or the table is that of another model.
        """
        refuse_untimed(space)
        if self.model != shapes_of(space):
            raise ConfigError(
                "budget.table: the table was measured on a model with other shapes. Leave it out to have one measured."
            )
        if space.name == "width":
            curves = {"kv_group": self.attention, "mlp_channel": self.mlp}
            steps = {group.name: curves[group.kind].nanoseconds(group.size) for group in space.groups}
            num_layers = len({group.layer for group in space.groups})
            return Latency(_nanoseconds(self.fixed_ms + num_layers * self.layer_ms), steps)
        layer = _nanoseconds(self.layer_ms + self.attention.milliseconds[-1] + self.mlp.milliseconds[-1])
        return Latency(_nanoseconds(self.fixed_ms), {group.name: (0, layer) for group in space.groups})


def refuse_untimed(space: PruningSpace) -> None:
    """Refuse a space whose removals have no measured times.

    Raises:
        ConfigError: with the spaces that have.
    """
    if space.name not in TIMED:
        raise ConfigError(
            f"budget.of=latency only has times for KV groups, MLP channels and whole layers, but space `{space.name}`"
            f" removes other things. Use space {' or '.join(TIMED)}, or another budget.of."
        )


def shapes_of(space: PruningSpace) -> str:
    """Identifies the shapes of a dense model, whatever the space removes from it."""
    return hashlib.sha256(json.dumps(dict(sorted(space.shapes.items()))).encode()).hexdigest()[:16]


def _nanoseconds(milliseconds: float) -> int:
    return round(milliseconds * 1e6)
