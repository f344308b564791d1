"""Constants that a plan adds to the output of linears: in the dense model, and in what the cut leaves of it."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tuneprune.structure.edits import Bias
from tuneprune.structure.plan import Cuts, Plan
from tuneprune.structure.space import PruningSpace


@torch.no_grad()
def add_biases(model: PreTrainedModel, edits: Iterable[Bias]) -> None:
    """Add the constants to the biases of the linears, in place; a linear without a bias gets one."""
    for edit in edits:
        linear: Any = model.get_submodule(edit.module)
        bias = edit.bias.to(linear.weight)
        if linear.bias is None:
            linear.bias = nn.Parameter(bias.clone(), requires_grad=linear.weight.requires_grad)
        else:
            linear.bias.add_(bias)


def new_biases(space: PruningSpace, plan: Plan) -> list[str]:
    """The linears that have a bias only because of the plan. No stock class of their family has a place for them."""
    return [edit.module for edit in plan.of_kind(Bias) if f"{edit.module}.bias" not in space.shapes]


def with_new_biases(cuts: Cuts, modules: Iterable[str]) -> Mapping[tuple[str, int], Tensor]:
    """The cuts, with new biases losing what the rows of their weights lose: no group of the space names them."""
    rows = {(f"{module}.bias", 0): cuts.get((f"{module}.weight", 0)) for module in modules}
    return {**cuts, **{key: kept for key, kept in rows.items() if kept is not None}}
