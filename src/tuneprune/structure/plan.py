"""The narrow waist: a decision as a serialisable list of edits over named groups."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

from tuneprune.errors import PlanMismatch
from tuneprune.structure.space import Masks, PruningSpace

FORMAT = 1
Cuts = Mapping[tuple[str, int], Int[Tensor, " kept"]]
"""Positions to keep, by parameter and dimension."""


@dataclass(frozen=True)
class Keep:
    """Keep these units of a group, counted in the dense layout."""

    group: str
    units: Int[Tensor, " n"]


Edit = Keep


@dataclass(frozen=True)
class Plan:
    """What becomes of a model: edits that address the groups of one space of one model.

    `provenance` records who decided (method, budget, seed); it does not change what the plan does.
    """

    edits: tuple[Edit, ...]
    space: str
    provenance: Mapping[str, object] = field(default_factory=dict[str, object])

    @classmethod
    def from_masks(cls, masks: Masks, space: PruningSpace, provenance: Mapping[str, object] | None = None) -> "Plan":
        """The plan that keeps the units whose hard mask is 1."""
        assert all(((mask == 0) | (mask == 1)).all() for mask in masks.values()), "a plan takes hard masks"
        edits = tuple(Keep(name, masks[name].cpu().nonzero().squeeze(1)) for name in space.by_name)
        return cls(edits, space.fingerprint, provenance or {})

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
        seen: set[str] = set()
        for edit in self.edits:
            if edit.group not in space.by_name:
                raise PlanMismatch(f"The plan keeps units of `{edit.group}`, which this space does not have.")
            if edit.group in seen:
                raise PlanMismatch(f"The plan decides on `{edit.group}` twice; a group takes one edit.")
            seen.add(edit.group)
            _check_units(edit, space.by_name[edit.group].size)

    def masks(self, space: PruningSpace) -> dict[str, Tensor]:
        """The hard masks of the plan's Keep edits; groups without an edit are kept whole."""
        self.check(space)
        masks = space.ones()
        for edit in self.edits:
            masks[edit.group] = torch.zeros_like(masks[edit.group]).index_fill(0, edit.units, 1.0)
        return masks

    def lower(self, space: PruningSpace) -> Cuts:
        """All Keeps at once, in dense coordinates: the positions to keep, by parameter and dimension.

        Lowering together matters: two groups may cut one dimension (k and v of a packed projection), and
        cutting one after the other would shift the second one's positions.
        """
        masks = self.masks(space)
        kept: dict[tuple[str, int], Tensor] = {}
        for group in space.groups:
            for piece in group.slices:
                key = (piece.param, piece.dim)
                flags = kept.setdefault(key, torch.ones(space.shapes[piece.param][piece.dim], dtype=torch.bool))
                gone = (masks[group.name] == 0).nonzero().squeeze(1)
                flags[piece.segment.positions(gone)] = False
        return {key: flags.nonzero().squeeze(1) for key, flags in kept.items() if not flags.all()}

    def widths(self, space: PruningSpace) -> dict[str, int]:
        """Units kept, by group."""
        return {name: int(mask.sum().item()) for name, mask in self.masks(space).items()}

    def save(self, folder: Path) -> None:
        """Write `plan.json` and `plan.safetensors` into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(
            {edit.group: edit.units.to(torch.int64).clone() for edit in self.edits},
            folder / "plan.safetensors",
        )
        head = {
            "format": FORMAT,
            "space": self.space,
            "provenance": dict(self.provenance),
            "edits": [{"edit": "keep", "group": edit.group, "kept": len(edit.units)} for edit in self.edits],
        }
        (folder / "plan.json").write_text(json.dumps(head, indent=1) + "\n", encoding="utf8")

    @classmethod
    def load(cls, folder: Path) -> "Plan":
        """Read a plan back.

        Raises:
            PlanMismatch: the folder holds no plan, or a damaged one.
        """
        try:
            head = json.loads((folder / "plan.json").read_text(encoding="utf8"))
            if head["format"] != FORMAT:
                raise PlanMismatch(
                    f"{folder}: plan format {head['format']} is not {FORMAT}; use the version that wrote it."
                )
            tensors = load_file(folder / "plan.safetensors")
            edits = tuple(_read_edit(entry, tensors) for entry in head["edits"])
            return cls(edits, str(head["space"]), dict(head["provenance"]))
        except PlanMismatch:
            raise
        except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise PlanMismatch(f"{folder} holds no readable plan ({reason}). Make the plan again.") from error


def _read_edit(entry: Mapping[str, object], tensors: Mapping[str, Tensor]) -> Edit:
    name, kind, kept = str(entry["group"]), entry["edit"], entry["kept"]
    if kind != "keep":
        raise ValueError(f"unknown edit `{kind}` of `{name}`")
    if len(tensors[name]) != kept:
        raise ValueError(f"`{name}` should keep {kept} units, but plan.safetensors lists {len(tensors[name])}")
    return Keep(name, tensors[name])


def _check_units(edit: Keep, size: int) -> None:
    """Refuse units that are no ascending list of a group's units: the compressor reads them as one.

    Raises:
        PlanMismatch: none, out of range, repeated, or out of order.
    """
    units = edit.units
    if units.ndim != 1 or units.is_floating_point() or not len(units):
        raise PlanMismatch(f"The plan's units of `{edit.group}` are no list of unit numbers; it must keep some.")
    if units[0] < 0 or units[-1] >= size or not bool((units[1:] > units[:-1]).all()):
        raise PlanMismatch(
            f"The plan's units of `{edit.group}` must ascend without repetition from 0 to at most {size - 1}."
        )
