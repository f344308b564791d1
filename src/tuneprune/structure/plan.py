"""A pruning decision as a list of edits over named groups, and the two files that store it."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict, TypeVar, cast

import torch
from jaxtyping import Int
from safetensors.torch import load_file, save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

from tuneprune.errors import PlanMismatch
from tuneprune.structure.edits import (
    Bias,
    Drop,
    Edit,
    Keep,
    Rotate,
    Route,
    check_edit,
    from_entry,
    misfit,
    target,
    tensors_of,
    to_entry,
)
from tuneprune.structure.space import Masks, PruningSpace
from tuneprune.system.storage import disk_errors_explained, replacing, write_text

FORMAT = 2
LARGEST = 2**24
"""Most bytes that a plan.json may have: a hundred times as many as the deepest models need."""
Cuts = Mapping[tuple[str, int], Int[Tensor, " kept"]]
"""Positions to keep, by parameter and dimension."""
E = TypeVar("E", Keep, Drop, Rotate, Bias, Route)


class Provenance(TypedDict, total=False):
    """How a plan came about; a plan from elsewhere may lack any of it."""

    method: Mapping[str, Any]
    """Its name and options."""
    budget: Mapping[str, Any]
    seed: int
    space: str
    family: str
    lora_residue: Mapping[str, float]
    """How much LoRA the removed units still had (methods that train masks)."""
    active_parameters: int
    """Parameters that one token uses (ToMoE)."""
    budget_counts: str
    """Whether the budget limits all parameters or those active for one token (ToMoE)."""


@dataclass(frozen=True)
class Plan:
    """A pruning decision: edits that address the groups of one space of one model.

    `provenance` does not change what the plan does.
    """

    edits: tuple[Edit, ...]
    space: str
    provenance: Provenance = field(default_factory=Provenance)

    @classmethod
    def from_masks(cls, masks: Masks, space: PruningSpace, provenance: Provenance | None = None) -> "Plan":
        """The plan that keeps the units whose hard mask is 1, and drops the blocks whose mask is 0."""
        assert all(((mask == 0) | (mask == 1)).all() for mask in masks.values()), "a plan takes hard masks"
        edits: list[Edit] = []
        for name, group in space.by_name.items():
            if group.kind != "block":
                edits.append(Keep(name, masks[name].cpu().nonzero().squeeze(1)))
            elif not masks[name].any():
                edits.append(Drop(name))
        return cls(tuple(edits), space.fingerprint, provenance or Provenance())

    def check(self, space: PruningSpace) -> None:
        """Refuse another space, and edits that do not fit this one.

        Raises:
            PlanMismatch: the plan was made for another model or space, or does not name existing units once.
        """
        if self.space != space.fingerprint:
            raise PlanMismatch(
                f"The plan belongs to space {self.space}, not to space `{space.name}` ({space.fingerprint})"
                " of this model. Apply it to the model and space it was made for."
            )
        seen: set[tuple[type[Edit], str]] = set()
        for edit in self.edits:
            key = (Keep if isinstance(edit, Route) else type(edit), target(edit))
            if key in seen:
                raise misfit(f"decides on `{key[1]}` twice; it takes one edit of a kind")
            seen.add(key)
            check_edit(edit, space)
        blocks = {group.name for group in space.groups if group.kind == "block"}
        if blocks and blocks == {edit.block for edit in self.edits if isinstance(edit, Drop)}:
            raise misfit("drops every block of the model; it must keep some")

    def of_kind(self, kind: type[E]) -> list[E]:
        """The edits of one kind, in order."""
        return [edit for edit in self.edits if isinstance(edit, kind)]

    def masks(self, space: PruningSpace) -> dict[str, Tensor]:
        """The plan as hard masks; groups without an edit are kept whole.

        A routed group keeps the units that are in any expert.
        """
        self.check(space)
        masks = space.ones()
        for edit in self.edits:
            if isinstance(edit, Keep):
                masks[edit.group] = torch.zeros_like(masks[edit.group]).index_fill(0, edit.units, 1.0)
            elif isinstance(edit, Drop):
                masks[edit.block] = torch.zeros_like(masks[edit.block])
            elif isinstance(edit, Route):
                masks[edit.group] = edit.experts.any(0).float()
        return masks

    def lower(self, space: PruningSpace) -> Cuts:
        """The positions to keep by parameter and dimension, in dense coordinates, for all Keeps at once.

        Doing this one group at a time would be wrong: two groups may cut one dimension (k and v of a packed
        projection), and the first cut would shift the positions of the second.
        """
        masks = self.masks(space)
        kept: dict[tuple[str, int], Tensor] = {}
        for group in space.groups:
            for piece in group.slices:
                key = (piece.param, piece.dim)
                flags = kept.setdefault(key, torch.ones(space.shapes[piece.param][piece.dim], dtype=torch.bool))
                removed = (masks[group.name] == 0).nonzero().squeeze(1)
                flags[piece.segment.positions(removed)] = False
        cuts = {key: flags.nonzero().squeeze(1) for key, flags in kept.items() if not flags.all()}
        for alias, param in space.tied.items():
            cuts |= {(alias, dim): positions for (name, dim), positions in cuts.items() if name == param}
        return cuts

    def widths(self, space: PruningSpace) -> dict[str, int]:
        """Units kept, by group."""
        return {name: int(mask.sum().item()) for name, mask in self.masks(space).items()}

    def added(self, space: PruningSpace) -> int:
        """Number of parameters that the plan adds: new biases and routers, and what rotations cost."""
        cuts = self.lower(space)
        total = sum(tensor.numel() for edit in self.of_kind(Route) for tensor in edit.router.values())
        for edit in self.of_kind(Bias):
            if f"{edit.module}.bias" not in space.shapes:
                total += len(cuts.get((f"{edit.module}.weight", 0), edit.bias))
        rotations = self.of_kind(Rotate)
        if rotations:
            streams = [len(edit.units) for edit in self.of_kind(Keep) if space.by_name[edit.group].kind == "hidden"]
            total += added_by_rotating(space, len(rotations), min(streams, default=len(rotations[0].basis)))
        return total

    def save(self, folder: Path) -> None:
        """Write `plan.json` and `plan.safetensors` into `folder`, so that no reader ever sees files of two plans.

        Raises:
            ConfigError: they could not be written.
        """
        tensors = {
            f"{_prefix(to_entry(edit))}{name}": tensor.detach().cpu().clone().contiguous()
            for edit in self.edits
            for name, tensor in tensors_of(edit).items()
        }
        with disk_errors_explained(folder):
            (folder / "plan.json").unlink(missing_ok=True)  # a kill must not leave it next to other tensors
        with replacing(folder / "plan.safetensors") as partial:
            save_file(tensors, partial)
        head = {
            "format": FORMAT,
            "space": self.space,
            "provenance": dict(self.provenance),
            "edits": [to_entry(edit) for edit in self.edits],
        }
        write_text(folder / "plan.json", json.dumps(head, indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "Plan":
        """Read a plan back.

        Raises:
            PlanMismatch: the folder holds no plan, or a damaged one.
        """
        try:
            head = _head(folder / "plan.json")
            if head["format"] != FORMAT:
                raise PlanMismatch(
                    f"{folder}: plan format {head['format']} is not {FORMAT}; use the version that wrote it."
                )
            tensors = load_file(folder / "plan.safetensors")
            edits = tuple(from_entry(entry, _tensors_at(entry, tensors)) for entry in head["edits"])
            return cls(edits, _text(head["space"]), cast("Provenance", dict(head["provenance"])))
        except PlanMismatch:
            raise
        except FileNotFoundError as error:
            name = Path(error.filename or "plan.safetensors").name
            raise PlanMismatch(f"{folder} holds no plan: {name} is missing. Name the plan/ of a run.") from error
        except Exception as error:  # the libraries raise all kinds of errors on damaged files
            reason = f"{type(error).__name__}: {error}"
            raise PlanMismatch(f"{folder} holds no readable plan ({reason}). Make the plan again.") from error


def _head(path: Path) -> dict[str, Any]:
    """The content of `plan.json`.

    Raises:
        ValueError, TypeError, KeyError: it is not that of a plan, or larger than any plan.
    """
    if path.stat().st_size > LARGEST:
        raise ValueError(f"plan.json has more than {LARGEST} bytes")
    head = json.loads(path.read_text(encoding="utf8"))
    _text(head["provenance"].get("space", ""))
    return head


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.60} is not text")
    return value


def _prefix(entry: Mapping[str, object]) -> str:
    """The start of the names under which the tensors of one edit are stored."""
    return f"{entry['edit']}.{entry['target']}."


def _tensors_at(entry: Mapping[str, object], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    prefix = _prefix(entry)
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def added_by_rotating(space: PruningSpace, bases: int, width: int) -> int:
    """Number of parameters that `bases` bases of a residual stream of `width` kept dims add to a model.

    Every change of basis takes a matrix on the skip connection that crosses it. A head that was tied to the embedding
    becomes a tensor of its own, because the weight of the last norm is folded into it.
    """
    heads = 0
    for param in space.tied.values():
        owned = {piece.dim for group in space.groups for piece in group.slices if piece.param == param}
        heads += math.prod(width if dim in owned else size for dim, size in enumerate(space.shapes[param]))
    return heads + (bases - 1) * width**2
