"""The budget that a user sets, in the user's units."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast

from jaxtyping import Float
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)
from torch import Tensor

from tuneprune.budget import amounts
from tuneprune.budget.chains import MultipleOf, alignment
from tuneprune.budget.latency_table import Phase
from tuneprune.budget.selection import exact_widths, groups_at
from tuneprune.errors import ConfigError
from tuneprune.structure.space import Kind, Latency, Masks, PruningSpace

ABSOLUTE = {
    "total": (amounts.PARAMETERS, "parameters, such as 350M or 3.5B"),
    "bytes": (amounts.BYTES, "bytes, such as 300MB or 1.5GiB"),
    "latency": (amounts.NANOSECONDS, "a time, such as 12ms"),
}
"""The units of `at_most`, by what is counted."""

INDEXED: dict[Kind, int] = {"read": 8, "write": 8, "qk_pair": 16}
"""Bytes of the stored indices of a kept unit, for kinds that need indices; a pair has two."""


class Budget(BaseModel):
    """Keep the share `keep` of what `of` counts, or `at_most` the given amount.

    A run turns `at_most` into a share of its model (`on`) before a method gets the budget.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    keep: amounts.Share = Field(default=0.6, gt=0, le=1, description="share to keep: 0.6 or 60%")
    at_most: str | None = Field(
        default=None,
        description="instead of `keep`: parameters (350M, 3.5B), with `of: bytes` a size (300MB), with `of: latency` a"
        " time of one forward pass (12ms)",
    )
    of: Literal["total", "prunable", "bytes", "latency"] = Field(
        default="total",
        description="count all parameters, only those of tensors that the space can cut, the bytes of the weight files,"
        " or the time of a forward pass, from a table of measured layers",
    )
    multiple_of: MultipleOf = Field(
        default="auto",
        description="every kept width is a multiple of this many features; `auto` is 128 for widths of 2048 features or"
        " more that 128 divides, and 1 for others; does not apply to dropped layers",
    )
    per_layer: Literal["free", "uniform"] = Field(
        default="free",
        description="`uniform` gives every layer the same widths, so that a stock class can hold the result",
    )
    min_keep: amounts.Share = Field(
        default=0.05,
        ge=0,
        le=1,
        description="share of its units that every group keeps at least, but always one step of `multiple_of`; does not"
        " apply to whole layers",
    )
    table: Path | None = Field(
        default=None, description="`of: latency`: the latency.json of an earlier run, instead of measuring again"
    )
    phase: Phase | None = Field(
        default=None,
        description="`of: latency`: decode (a token with its cache; the default) or prefill (the prompt)",
    )
    batch_size: int | None = Field(default=None, ge=1, description="`of: latency`: rows of the batch; 1 by default")
    protect: list[int | str] = Field(
        default=[],
        description="what is kept whole: numbers of layers (negative ones count from the end), kinds of units, or names"
        " of groups with * for any part",
    )
    widths: dict[str, Annotated[int, Field(ge=1)]] | None = Field(
        default=None,
        description="instead of `keep`: numbers of units to keep, by kind (mlp_channel: 1024) or name of a group;"
        " groups that are not named are kept whole",
    )
    _asked: str = PrivateAttr(default="")
    _exact: dict[str, int] = PrivateAttr(default={})
    _bytes_each: int = PrivateAttr(default=0)

    @field_validator("at_most", mode="before")
    @classmethod
    def _text(cls, value: object) -> object:
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("protect", mode="before")
    @classmethod
    def _several(cls, value: object) -> object:
        entries = cast("list[object]", value) if isinstance(value, list) else [value]
        if any(isinstance(entry, bool) for entry in entries):
            raise ValueError("write numbers of layers, kinds or names of groups, not true or false")
        return entries

    @field_validator("multiple_of", mode="plain")
    @classmethod
    def _auto_or_whole(cls, value: object) -> object:
        if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
            return value
        raise ValueError(f"write `auto` or a whole number from 1 up, not {value!r}")

    @model_validator(mode="after")
    def _one_amount(self) -> Self:
        if self.at_most is not None:
            if "keep" in self.model_fields_set:
                raise ValueError("`keep` and `at_most` give two sizes; write one of them")
            if self.of not in ABSOLUTE:
                raise ValueError(f"`at_most` cannot be combined with `of: {self.of}`; use `keep`, or `of: total`")
            units, form = ABSOLUTE[self.of]
            if not amounts.parse_amount(self.at_most, units):
                raise ValueError(f"at_most={self.at_most} is not possible with `of: {self.of}`; write {form}")
        if self.widths is not None:
            given = self.model_fields_set & {"keep", "at_most", "multiple_of", "min_keep", "protect"}
            if given or not self.widths:
                raise ValueError(
                    f"`widths` gives exact sizes; leave {' and '.join(f'`{name}`' for name in sorted(given))} out"
                    if given
                    else "`widths` names no units; write them as mlp_channel: 1024"
                )
            if self.of != "total":
                raise ValueError(
                    f"`widths` are numbers of units and cannot be combined with `of: {self.of}`; leave `of` out"
                )
        timing = [name for name in ("table", "phase", "batch_size") if getattr(self, name) is not None]
        if timing and self.of != "latency":
            raise ValueError(f"`{timing[0]}` belongs to `of: latency`, but this budget counts {self.of}; leave it out")
        return self

    @model_serializer(mode="wrap")
    def _given_only(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out options that are not given, and `keep` if another option determines it."""
        content: dict[str, Any] = serialise(self)
        optional = ("at_most", "table", "phase", "batch_size", "protect", "widths")
        left_out = {name for name in optional if content.get(name) in (None, [])}
        left_out |= {"keep"} if self.at_most is not None else set()
        left_out |= {"keep", "multiple_of", "min_keep"} if self.widths is not None else set()
        return {name: value for name, value in content.items() if name not in left_out}

    @property
    def name(self) -> str:
        """The budget as it is in the run file, with its key."""
        return self._asked or f"budget.keep={self.keep}"

    @property
    def key(self) -> str:
        """The key of the run file that gives the size."""
        return self.name.partition("=")[0]

    @property
    def counted(self) -> str:
        """What is counted, in words."""
        return {"bytes": "weight bytes", "latency": "latency"}.get(self.of, f"{self.of} parameters")

    def on(self, space: PruningSpace, bytes_each: int = 0) -> "Budget":
        """This budget as a share of one model: no `at_most` or `widths`, no `auto` if it would always be 1.

        Args:
            bytes_each: bytes of one stored parameter.

        Raises:
            ConfigError: nothing would be removed, or `widths` does not fit the model.
        """
        changes: dict[str, Any] = {}
        if self.multiple_of == "auto" and all(alignment(group, "auto") == 1 for group in space.groups):
            changes["multiple_of"] = 1
        asked = self._asked
        if self.at_most is not None:
            asked = f"budget.at_most={self.at_most}"
            cost = amounts.parse_amount(self.at_most, ABSOLUTE[self.of][0]) or 0
            if self.of == "bytes":
                cost = (cost - header_bytes(space)) // bytes_each
            changes |= {"at_most": None, "keep": cost / self.dense(space)}
        exact = self._exact
        if self.widths is not None:
            asked = f"budget.widths={self.widths}"
            exact = exact_widths(space, self.widths)
            changes |= {"widths": None, "multiple_of": 1, "min_keep": 0.0}
            changes |= {"keep": space.count(exact) / space.num_parameters, "per_layer": _per_layer(space, exact)}
        budget = self.model_copy(update=changes)
        budget._asked, budget._bytes_each, budget._exact = asked, bytes_each, exact
        if budget.target(space) >= self.dense(space) and (budget.keep < 1 or self.at_most is not None):
            raise ConfigError(
                f"{budget.name} removes nothing: the dense model has {budget.amount(self.dense(space))}. Lower it."
            )
        return budget

    @property
    def is_exact(self) -> bool:
        """Whether it gives the width of every group."""
        return bool(self._exact)

    def pinned(self, space: PruningSpace) -> dict[str, int]:
        """Units that groups keep at least, whatever their scores: all of protected ones, and exact widths.

        Raises:
            ConfigError: something in `protect` is not in the model.
        """
        protected = [group for entry in self.protect for group in groups_at(space, entry, "budget.protect")]
        return self._exact | {group.name: group.size for group in protected}

    def whole(self, space: PruningSpace) -> frozenset[str]:
        """The groups that lose nothing, whatever their scores."""
        return frozenset(name for name, kept in self.pinned(space).items() if kept == space.by_name[name].size)

    def smallest(self, space: PruningSpace, cost: int) -> str:
        """The smallest value of the budget's key that leaves room for a whole model of this cost."""
        if self.key == "budget.keep":
            return f"{self.smallest_keep(space, cost):.4f}"
        if self.of == "bytes":
            return amounts.rounded_up(cost * self._bytes_each + header_bytes(space), amounts.BYTES)
        return amounts.rounded_up(cost, ABSOLUTE[self.of][0])

    def cost(self, space: PruningSpace, kept: Mapping[str, int]) -> int:
        """The cost of a model whose groups keep these numbers of units: parameters, or nanoseconds."""
        return _latency(space).count(kept) if self.of == "latency" else space.count(kept)

    def cost_left(self, space: PruningSpace, masks: Masks) -> Float[Tensor, ""]:
        """`cost` under soft masks, differentiable in them."""
        return _latency(space).left(masks) if self.of == "latency" else space.parameters_left(masks)

    def dense(self, space: PruningSpace) -> int:
        """The cost of the dense model."""
        return _latency(space).dense if self.of == "latency" else space.num_parameters

    def fixed(self, space: PruningSpace) -> int:
        """The part of the dense cost that no decision changes."""
        return _latency(space).fixed if self.of == "latency" else space.num_parameters - space.num_prunable

    def denominator(self, space: PruningSpace) -> int:
        """The cost that `keep` is a share of."""
        return space.num_prunable if self.of == "prunable" else self.dense(space)

    def target(self, space: PruningSpace) -> int:
        """The most that the whole model may cost."""
        assert self.at_most is None, "`on` has to be called first"
        if self.of == "prunable":
            return space.num_parameters - round((1 - self.keep) * space.num_prunable)
        return round(self.keep * self.dense(space))

    def share(self, space: PruningSpace, cost: int) -> float:
        """The `keep` that a whole model of this cost has."""
        whole = self.denominator(space)
        return (cost - self.dense(space) + whole) / whole

    def smallest_keep(self, space: PruningSpace, cost: int) -> float:
        """The smallest `keep`, to four digits, that leaves room for a whole model of this cost."""
        return math.ceil(self.share(space, cost) * 1e4) / 1e4

    def written(self, space: PruningSpace, cost: int) -> str:
        """A cost in the unit of the budget's key: bytes of `at_most` are those of whole files."""
        if self.of == "bytes" and self.key != "budget.keep":
            return amounts.bytes_written(cost * self._bytes_each + header_bytes(space))
        return self.amount(cost)

    def amount(self, cost: int) -> str:
        """A cost in the user's units."""
        if self.of == "latency":
            return amounts.milliseconds_written(cost)
        if self.of == "bytes" and self._bytes_each:
            return amounts.bytes_written(cost * self._bytes_each)
        return f"{cost:,} parameters"


def _per_layer(space: PruningSpace, widths: Mapping[str, int]) -> Literal["free", "uniform"]:
    """Whether widths are the same in all layers."""
    by_kind: dict[tuple[str, str], set[tuple[int, int]]] = {}
    for group in space.groups:
        place = (group.kind, group.name.rpartition(".")[2])
        by_kind.setdefault(place, set()).add((group.size, widths[group.name]))
    return "uniform" if all(len(sizes) == 1 for sizes in by_kind.values()) else "free"


def header_bytes(space: PruningSpace) -> int:
    """A bound on the bytes in weight files besides the weights: headers, and the indices of dims that a layer keeps."""
    indices = sum(INDEXED.get(group.kind, 0) * group.size for group in space.groups)
    return 1024 + sum(len(name) + 128 for name in space.shapes) + indices


def _latency(space: PruningSpace) -> Latency:
    assert space.latency is not None, "a budget of time needs measured times"
    return space.latency
