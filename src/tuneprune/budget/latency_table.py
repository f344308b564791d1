"""Measured times of a model's parts by their width, as a file that a decision can be repeated from."""

import hashlib
import json
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy
from pydantic import BaseModel, Field, ValidationError, model_validator

from tuneprune.errors import ConfigError
from tuneprune.structure.latency import Latency
from tuneprune.structure.space import PruningSpace

Phase = Literal["decode", "prefill"]
TIMED = ("width", "depth")
"""The spaces whose removals change the widths that a table is about."""
Milliseconds = Annotated[float, Field(ge=0, le=86_400_000, allow_inf_nan=False)]
"""No part of a forward pass takes a day, and what is no time at all cannot be counted in nanoseconds."""


class Curve(BaseModel, frozen=True, extra="forbid"):
    """The time of one part of a layer by how many units it keeps, linear in between."""

    units: list[Annotated[int, Field(le=2**31)]] = Field(
        min_length=1, description="KV groups or MLP channels kept, ascending"
    )
    milliseconds: list[Milliseconds] = Field(
        min_length=1, description="time of one forward pass of the part, never falling"
    )

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if len(self.units) != len(self.milliseconds):
            raise ValueError("units and milliseconds have to be as many")
        if self.units[0] < 1 or any(b <= a for a, b in pairwise(self.units)):
            raise ValueError("units have to ascend from 1 or more")
        times = self.milliseconds
        if not times[0] > 0 or any(not b >= a for a, b in pairwise(times)):
            raise ValueError("milliseconds have to be above 0 and must not fall where units rise")
        return self

    def nanoseconds(self, size: int) -> tuple[int, ...]:
        """The time with 0 to `size` units; outside of what was measured that of the nearest width."""
        times = numpy.interp(numpy.arange(size + 1), self.units, self.milliseconds)
        return tuple(round(time * 1e6) for time in times.tolist())


class LatencyTable(BaseModel, frozen=True, extra="forbid"):
    """What one forward pass of a dense model's parts takes on one machine, in milliseconds.

    `model` stands for the shapes of its parameters, not for their values, so a table serves every model of one shape.
    """

    format: Literal[1] = 1
    model: str = Field(description="`shapes_of` the dense model")
    engine: str = Field(description="what ran the parts, such as `transformers`")
    phase: Phase = Field(description="decode: one token a row with its cache; prefill: the prompt")
    batch_size: int = Field(ge=1)
    prompt_tokens: int = Field(ge=1)
    device: str
    dtype: str
    threads: int = Field(ge=1)
    fixed_ms: Milliseconds = Field(gt=0, description="embeddings, final norm, head, and what every pass does once")
    layer_ms: Milliseconds = Field(description="what a layer does beside its attention and its MLP")
    attention: Curve
    mlp: Curve
    environment: dict[str, str] = Field(default_factory=dict[str, str], description="versions and processor")

    @property
    def what(self) -> str:
        """What the times are of, as a reader would say it."""
        return f"{self.phase} latency of {self.engine} at batch size {self.batch_size}"

    @classmethod
    def load(cls, path: Path) -> Self:
        """The table in a file.

        Raises:
            ConfigError: no such file, or one that holds no table.
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
                f"budget.table: {path} is no latency table ({place + ': ' if place else ''}{first['msg']}). Name the"
                " latency.json of an earlier run, or leave the table out to have it measured."
            ) from error

    def on(self, space: PruningSpace) -> Latency:
        """The time of every group of a space.

        Raises:
            ConfigError: a space that removes other things than the table knows, or a table of another model.
        """
        refuse_untimed(space)
        if self.model != shapes_of(space):
            raise ConfigError(
                "budget.table: the table was measured on a model of other shapes. Leave it out to have one measured."
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
        ConfigError: names the spaces that have.
    """
    if space.name not in TIMED:
        raise ConfigError(
            f"budget.of=latency has times of KV groups, MLP channels and whole layers, but space `{space.name}` removes"
            f" other things. Use space {' or '.join(TIMED)}, or another budget.of."
        )


def shapes_of(space: PruningSpace) -> str:
    """Identifies the shapes of a dense model, whatever is removed from it."""
    return hashlib.sha256(json.dumps(dict(sorted(space.shapes.items()))).encode()).hexdigest()[:16]


def _nanoseconds(milliseconds: float) -> int:
    return round(milliseconds * 1e6)
