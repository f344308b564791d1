"""The narrow waist: a decision as a serialisable list of edits over named groups."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tuneprune.errors import PlanMismatch
from tuneprune.structure.space import Masks, PruningSpace

FORMAT = 1
Cuts = Mapping[tuple[str, int], Int[Tensor, "kept"]]
"""Positions to keep, by parameter and dimension."""


@dataclass(frozen=True)
class Keep:
    """Keep these units of a group, counted in the dense layout."""

    group: str
    units: Int[Tensor, "n"]


Edit = Keep


@dataclass(frozen=True)
class Plan:
    """What becomes of a model: edits that address the groups of one space of one model.

    `provenance` records who decided (method, budget, seed); it does not change what the plan does.
    """

    edits: tuple[Edit, ...]
    space: str
    provenance: Mapping[str, object] = field(default_factory=dict)

    @classmethod
    def from_masks(cls, masks: Masks, space: PruningSpace, provenance: Mapping[str, object] | None = None) -> "Plan":
        """The plan that keeps the units whose hard mask is 1."""
        edits = tuple(Keep(name, masks[name].cpu().nonzero().squeeze(1)) for name in space.by_name)
        return cls(edits, space.fingerprint, provenance or {})

    def check(self, space: PruningSpace) -> None:
        """Refuse another space.

        Raises:
            PlanMismatch: the plan was made for another model or space, or addresses units that do not exist.
        """
        if self.space != space.fingerprint:
            raise PlanMismatch(
                f"The plan belongs to space {self.space}, not to space `{space.name}` ({space.fingerprint}) of this model."
                " Apply it to the model and space it was made for."
            )
        for edit in self.edits:
            group = space.by_name.get(edit.group)
            if group is None or not len(edit.units) or edit.units.min() < 0 or edit.units.max() >= group.size:
                raise PlanMismatch(f"The plan keeps units of `{edit.group}` that this space does not have.")

    def masks(self, space: PruningSpace) -> dict[str, Tensor]:
        """The hard masks of the plan's Keep edits; groups without an edit are kept whole."""
        self.check(space)
        masks = space.ones()
        for edit in self.edits:
            masks[edit.group] = torch.zeros_like(masks[edit.group]).index_fill(0, edit.units, 1.0)
        return masks

    def lower(self, space: PruningSpace) -> Cuts:
        """All Keeps at once, in dense coordinates: the positions to keep, by parameter and dimension.

        Lowering together matters: two groups may cut one dimension (k and v of a packed projection), and cutting one
        after the other would shift the second one's positions.
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
        save_file({edit.group: edit.units.to(torch.int64).contiguous() for edit in self.edits}, folder / "plan.safetensors")
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
            tensors = load_file(folder / "plan.safetensors")
            if head["format"] != FORMAT:
                raise PlanMismatch(f"{folder}: plan format {head['format']} is not {FORMAT}; use the version that wrote it.")
            edits = tuple(Keep(entry["group"], tensors[entry["group"]]) for entry in head["edits"])
            return cls(edits, head["space"], head["provenance"])
        except (OSError, KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError, SafetensorError) as error:
            raise PlanMismatch(f"{folder} holds no readable plan ({type(error).__name__}: {error}).") from error
