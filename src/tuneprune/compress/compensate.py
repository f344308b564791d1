"""Compensation by least squares: kept columns take over as much of the removed ones as they can."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from tuneprune.calibration.batch import Batch
from tuneprune.calibration.finite import Accepts, FiniteSums, accepts_here, all_finite
from tuneprune.calibration.statistics import Statistics, input_statistics
from tuneprune.errors import NonFinite
from tuneprune.structure.edits import Bias
from tuneprune.structure.plan import Plan
from tuneprune.structure.space import Kind, Masks, PruningSpace
from tuneprune.structure.weights import base_weight, effective_weight

KINDS: frozenset[Kind] = frozenset({"kv_group", "mlp_channel", "vo_dim", "read"})
"""Groups with input gates: they mask what a linear reads and nothing else, so the least-squares answer is exact."""
GRAM_BYTES = 2**31
"""Bytes of square matrices that one pass over the calibration data may hold."""


def gated_inputs(space: PruningSpace, masks: Masks) -> dict[str, Tensor]:
    """Which input features stay under hard `masks`, as booleans, of every linear whose input units are gated."""
    kept: dict[str, Tensor] = {}
    for group in space.groups:
        for gate in group.gates:
            if gate.side == "input":
                width, segment = space.shapes[f"{gate.module}.weight"][1], gate.segment
                flags = kept.setdefault(gate.module, torch.ones(width, dtype=torch.bool))
                flags[segment.start : segment.start + segment.extent] = segment.spread(masks[group.name].cpu()) > 0
    return kept


def kept_inputs(space: PruningSpace, masks: Masks) -> dict[str, Tensor]:
    """The same, only of linears that lose input features."""
    return {module: flags for module, flags in gated_inputs(space, masks).items() if not flags.all()}


def ridge_solution(among: Tensor, lost: Tensor, damping: float) -> Tensor:
    """D with D (G_SS + eps I) = `lost`, for `among` = G_SS and eps = `damping` times the mean of its diagonal.

    Not finite if there is no solution: callers check.
    """
    damped = among.clone()
    damped.diagonal().add_((damping * among.diagonal().mean()).clamp(min=1e-12))
    factor, failed = torch.linalg.cholesky_ex(damped)
    if failed:  # too little damping for the rounding of float32 products: not quite positive definite
        return torch.linalg.solve_ex(damped, lost, left=False)[0]
    return torch.cholesky_solve(lost.T, factor).T


@torch.no_grad()
def corrections(
    model: nn.Module,
    space: PruningSpace,
    masks: Masks,
    statistics: Mapping[str, Statistics],
    biases: Mapping[str, Tensor] | None = None,
    *,
    damping: float = 1e-4,
) -> dict[str, Tensor]:
    """The change of the weight of every linear in `statistics` that loses inputs; zero on removed columns.

    With kept inputs S, removed ones R and G = X X^T over tokens: D = W_R G_RS (G_SS + eps I)^-1, the ridge solution of
    min ||W_R X_R - D X_S||^2. For eps = 0 this is W' = W X X_S^T (X_S X_S^T)^-1; for eps > 0 it shrinks the change of
    the kept weights instead of the weights, so that the squared error is never larger than without compensation.

    Args:
        statistics: of the inputs of the model without masks, with `gram`.
        biases: constants that the plan adds to a module's output for removed inputs; D then covers the rest.
        damping: eps in units of the mean of G_SS's diagonal.

    Raises:
        NonFinite: the weights cannot hold a solution.
    """
    changes: dict[str, Tensor] = {}
    for module, flags in kept_inputs(space, masks).items():
        found = statistics.get(module)
        if found is None:
            continue
        assert found.gram is not None, "statistics for compensation need `gram`"
        weight = effective_weight(model, f"{module}.weight").double()
        stay, gone = (part.nonzero().squeeze(1).to(weight.device) for part in (flags, ~flags))
        gram = found.gram.double().to(weight.device)
        among = gram[stay][:, stay]
        lost = weight[:, gone] @ gram[gone][:, stay]  # [outputs, kept]
        if biases is not None and module in biases:
            lost -= torch.outer(biases[module].double().to(weight.device), found.total.double().to(weight.device)[stay])
        change = ridge_solution(among, lost, damping)
        if not all_finite([change.to(base_weight(model, f"{module}.weight").dtype)]):
            raise NonFinite(
                f"Compensating `{module}` for its removed inputs gave numbers that are not finite. Raise"
                " compensate.damping, or leave `compensate` out."
            )
        changes[module] = torch.zeros_like(weight).index_copy(1, stay, change)
    return changes


@torch.no_grad()
def compensate(
    model: nn.Module,
    space: PruningSpace,
    masks: Masks,
    statistics: Mapping[str, Statistics],
    biases: Mapping[str, Tensor] | None = None,
    *,
    damping: float = 1e-4,
) -> None:
    """Add `corrections` to the stored weights of the dense model, in place; for LoRA layers to the frozen ones."""
    add(model, corrections(model, space, masks, statistics, biases, damping=damping))


@torch.no_grad()
def add(model: nn.Module, changes: Mapping[str, Tensor]) -> None:
    """Add changes to the stored weights of modules, in place."""
    for module, change in changes.items():
        weight = base_weight(model, f"{module}.weight")
        weight.add_(change.to(weight))


def compensate_plan(
    model: nn.Module,
    space: PruningSpace,
    plan: Plan,
    batches: Sequence[Batch],
    forward: Callable[[Batch], Tensor],
    average: Callable[[Iterable[Tensor]], None],
    *,
    damping: float = 1e-4,
    accepts: Accepts = accepts_here,
) -> list[str]:
    """Compensate for the removals of `plan` in the merged dense `model`, in place; returns the changed linears.

    All statistics are those of the model as given. Its square matrices are gathered for as many linears at once as
    `GRAM_BYTES` hold, so a large model takes several passes over `batches`.

    Raises:
        NonFinite: no batch gave finite numbers, or a solution is not finite.
    """
    masks = plan.masks(space)
    biases = {edit.module: edit.bias for edit in plan.of_kind(Bias)}
    changes: dict[str, Tensor] = {}
    for modules in _portions(space, list(kept_inputs(space, masks))):
        found = input_statistics(model, modules, batches, forward, average, gram=True, sums=FiniteSums(accepts))
        part = corrections(model, space, masks, found, biases, damping=damping)
        changes |= {name: change.to(base_weight(model, f"{name}.weight").dtype) for name, change in part.items()}
    add(model, changes)
    return list(changes)


def _portions(space: PruningSpace, modules: Sequence[str]) -> list[list[str]]:
    """The modules in runs of at least one whose float64 square matrices (sum and batch) fit into `GRAM_BYTES`."""
    runs: list[list[str]] = []
    room = 0
    for module in modules:
        needed = 16 * space.shapes[f"{module}.weight"][1] ** 2
        if not runs or needed > room:
            runs.append([])
            room = GRAM_BYTES
        runs[-1].append(module)
        room -= needed
    return runs
