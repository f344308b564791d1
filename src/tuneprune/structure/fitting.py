"""Whether an edit of a plan fits the space that it is to change."""

import torch
from torch import Tensor

from tuneprune.errors import PlanMismatch
from tuneprune.structure import edits as kinds
from tuneprune.structure.edits import Bias, Drop, Edit, Keep, Rotate, Route
from tuneprune.structure.space import PruningSpace

AGAIN = " Make the plan again."
"""What to do about a plan whose edits fit no model, or not this one."""


def check_edit(edit: Edit, space: PruningSpace) -> None:
    """Refuse an edit that names nothing in the space, or whose tensors do not fit what it names.

    Raises:
        PlanMismatch: says which.
    """
    name = kinds.target(edit)
    if isinstance(edit, Keep | Route | Drop):
        group = space.by_name.get(name)
        if group is None or (group.kind == "block") != isinstance(edit, Drop):
            raise PlanMismatch(f"The plan decides on `{name}`, which this space does not have." + AGAIN)
        if isinstance(edit, Keep):
            _check_units(edit, group.size)
        if isinstance(edit, Route):
            _check_experts(edit, group.size)
            _check_router(edit, {space.shapes[piece.param][0] for piece in group.slices if piece.dim == 1})
    elif isinstance(edit, Bias):
        shape = space.shapes.get(f"{name}.weight")
        if shape is None or tuple(edit.bias.shape) != shape[:1]:
            raise PlanMismatch(
                f"The plan adds {edit.bias.numel()} biases to `{name}`, which this model cannot take." + AGAIN
            )
        _check_finite(edit.bias, name)
    else:
        _check_basis(edit, {size for shape in space.shapes.values() for size in shape})


def _check_basis(edit: Rotate, widths: set[int]) -> None:
    """Refuse what is no basis of a width of the model, before the multiplications that being orthonormal costs.

    Raises:
        PlanMismatch: says where.
    """
    shape = tuple(edit.basis.shape)
    if len(shape) != 2 or shape[0] != shape[1] or shape[0] not in widths:
        raise PlanMismatch(f"The plan's basis at `{edit.at}` is {shape}, no square over a width of this model." + AGAIN)
    _check_finite(edit.basis, edit.at)
    if not edit.is_orthonormal:
        raise PlanMismatch(f"The plan's basis at `{edit.at}` is not orthonormal." + AGAIN)


def _check_finite(tensor: Tensor, name: str) -> None:
    """Refuse numbers that would spoil every answer of the model.

    Raises:
        PlanMismatch: says whose.
    """
    if not tensor.is_floating_point():
        raise PlanMismatch(f"The plan's numbers for `{name}` are {tensor.dtype}, not of floating point." + AGAIN)
    if not bool(tensor.float().isfinite().all()):
        raise PlanMismatch(f"The plan has numbers that are not finite for `{name}`." + AGAIN)


def _check_experts(edit: Route, size: int) -> None:
    """Refuse experts over other units than the group's, empty ones, and more chosen ones than there are.

    Raises:
        PlanMismatch: says which group.
    """
    experts = edit.experts
    if experts.ndim != 2 or experts.shape[1] != size or not experts.any(1).all():
        raise PlanMismatch(f"The plan's experts of `{edit.group}` must each hold some of its {size} units." + AGAIN)
    if not 1 <= edit.top_k <= len(experts):
        raise PlanMismatch(f"The plan routes `{edit.group}` to {edit.top_k} of {len(experts)} experts." + AGAIN)


def _check_router(edit: Route, widths: set[int]) -> None:
    """Refuse a router that cannot choose among the experts by what the group's MLP reads.

    Args:
        widths: of the stream that the group's units are written to, which they are read from as well.

    Raises:
        PlanMismatch: says which group.
    """
    router, count = edit.router.get("weight"), len(edit.experts)
    if router is None or len(edit.router) != 1 or router.ndim != 2 or len(router) != count:
        raise PlanMismatch(
            f"The plan's router of `{edit.group}` needs one row of `weight` for each of {count} experts." + AGAIN
        )
    if router.shape[1] not in widths:
        raise PlanMismatch(
            f"The plan's router of `{edit.group}` has rows of {router.shape[1]} numbers; it takes rows of"
            f" {' or '.join(map(str, sorted(widths)))}." + AGAIN
        )
    _check_finite(router, edit.group)


def _check_units(edit: Keep, size: int) -> None:
    """Refuse units that are no ascending list of a group's units: the compressor reads them as one.

    Raises:
        PlanMismatch: none, out of range, repeated, or out of order.
    """
    units = edit.units
    is_whole = not (units.is_floating_point() or units.is_complex() or units.dtype == torch.bool)
    if units.ndim != 1 or not is_whole or not len(units):
        raise PlanMismatch(
            f"The plan's units of `{edit.group}` are no list of unit numbers; it must keep some." + AGAIN
        )
    if units[0] < 0 or units[-1] >= size or not bool((units[1:] > units[:-1]).all()):
        raise PlanMismatch(
            f"The plan's units of `{edit.group}` must ascend without repetition from 0 to at most {size - 1}." + AGAIN
        )
