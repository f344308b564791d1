"""The units that can be removed from a model, and what common budgets would leave of it."""

from copy import deepcopy
from typing import Any, Literal

from transformers import PretrainedConfig

from tuneprune import export, families
from tuneprune.budget import Budget, allocate, reachable
from tuneprune.budget.amounts import bytes_written
from tuneprune.errors import TunePruneError
from tuneprune.model.loading import load_config, skeleton, stored_dtype
from tuneprune.model.location import expand_name
from tuneprune.structure import spaces
from tuneprune.structure.architecture import Architecture
from tuneprune.structure.space import Kind, PruningSpace
from tuneprune.structure.spaces import UNIT_NAMES

BUDGETS = (0.8, 0.6, 0.5)
STOCK = "stock class"


def inspect(model: str, space_name: str) -> dict[str, Any]:
    """The groups by kind, the parameters, the reachable range, and what common budgets would leave.

    Raises:
        TunePruneError: a model or space that is not supported.
    """
    model = expand_name(model)
    config = load_config(model)
    architecture = families.describe_config(config)
    space = spaces.build(space_name, architecture, skeleton(config))
    low, high = reachable(space, Budget())
    precision = stored_dtype(config)
    kinds: dict[str, str] = {}
    for kind in _kinds(space):
        groups = [group for group in space.groups if group.kind == kind]
        each = "/".join(str(size) for size in sorted({group.size for group in groups}))
        spread = f"{each} in each of {len({g.layer for g in groups})} layers ({len(groups)} groups)"
        kinds[UNIT_NAMES[kind]] = str(len(groups)) if kind == "block" else spread
    equal = Budget(per_layer="uniform")
    return {
        "model": model,
        "family": architecture.family,
        "space": space.name,
        "parameters": {"total": space.num_parameters, "prunable": space.num_prunable},
        "bytes": {
            "total": space.num_parameters * precision.itemsize,
            "stored as": str(precision).removeprefix("torch."),
        },
        "units": kinds,
        "reachable": {"lowest keep of total": round(low / space.num_parameters, 4), "parameters": f"{low} to {high}"},
        "loads as": {
            "free widths": export.loads_as(config, architecture, space, Budget()),
            "equal widths (budget.per_layer: uniform)": export.loads_as(config, architecture, space, equal),
        },
        "budgets": {f"keep {keep} of total": _left(config, architecture, space, keep) for keep in BUDGETS},
        "fingerprint": space.fingerprint,
    }


def _kinds(space: PruningSpace) -> list[Kind]:
    """The kinds of groups in a space, in the model's order."""
    return list(dict[Kind, None].fromkeys(group.kind for group in space.groups))


def _left(
    config: PretrainedConfig, architecture: Architecture, space: PruningSpace, keep: float
) -> dict[str, Any] | str:
    """Size, widths and exports of a model of which the share `keep` is kept, or "not reachable"."""
    try:
        even = allocate(space.ones(), space, Budget(keep=keep), "local")
    except TunePruneError:
        return "not reachable"
    kept = {name: int(mask.sum()) for name, mask in even.items()}
    parameters = space.count(kept)
    fixed = space.num_parameters - space.num_prunable
    size = bytes_written(parameters * stored_dtype(config).itemsize)
    share = (parameters - fixed) / space.num_prunable
    left: dict[str, Any] = {
        "size": f"{parameters} parameters ({share:.1%} of the prunable ones), {size}",
        "typical widths": ", ".join(_typical(space, kept, kind) for kind in _kinds(space)),
    }
    for widths in _layouts(space):
        try:
            able, others = targets_for(config, architecture, space, Budget(keep=keep, per_layer=widths))
        except TunePruneError as error:
            left[f"exports ({widths} widths)"] = f"none: {error}"
            continue
        left[f"exports ({widths} widths)"] = ", ".join(able)
        left |= {f"not {name} ({widths} widths)": why for name, why in others.items()}
    return left


def _typical(space: PruningSpace, kept: dict[str, int], kind: Kind) -> str:
    """What is left of the units of one kind when every layer loses the same share."""
    groups = [group for group in space.groups if group.kind == kind]
    if kind == "block":
        return f"{sum(kept[group.name] for group in groups)} of {len(groups)} layers"
    widths = sorted({kept[group.name] for group in groups})
    spread = str(widths[0]) if len(widths) == 1 else f"{widths[0]} to {widths[-1]}"
    return f"{spread} of {groups[0].size} {UNIT_NAMES[kind]}"


def _layouts(space: PruningSpace) -> tuple[Literal["free", "uniform"], ...]:
    """The values of `per_layer` that make a difference on a space."""
    return ("free",) if space.name in ("depth", "residual") else ("free", "uniform")


def targets_for(
    config: PretrainedConfig, architecture: Architecture, space: PruningSpace, budget: Budget
) -> tuple[list[str], dict[str, str]]:
    """The export targets that can hold a model of this budget, and by name why others cannot.

    Both are found with one of the decisions that meet the budget.
    """
    shape = export.foresee(skeleton(deepcopy(config)), architecture, space, budget)
    able, others = [f"hf ({'one file of remote code' if shape.is_ragged else STOCK})"], {}
    for name, target in export.registry().items():
        try:
            target().refuse(shape)
            able.append(name)
        except TunePruneError as error:
            others[name] = str(error).removeprefix(f"{name}: ")
    return able, others
