"""What a model offers for removal, and what budgets would leave of it."""

from typing import Any

from tuneprune import families
from tuneprune.loading import load_config, skeleton
from tuneprune.structure import spaces
from tuneprune.structure.budget import Budget, reachable
from tuneprune.structure.space import Kind, PruningSpace
from tuneprune.structure.spaces import UNIT_NAMES

BUDGETS = (0.8, 0.6, 0.5, 0.4)


def inspect(model: str, space_name: str) -> dict[str, Any]:
    """Groups by kind, parameters, the reachable range, and the size of common budgets.

    Raises:
        TunePruneError: a model or space that is not supported.
    """
    config = load_config(model)
    architecture = families.describe_config(config)
    space = spaces.build(space_name, architecture, skeleton(config))
    low, high = reachable(space, Budget())
    kinds: dict[str, str] = {}
    present: list[Kind] = [group.kind for group in space.groups]
    for kind in dict.fromkeys(present):
        groups = [group for group in space.groups if group.kind == kind]
        sizes = sorted({group.size for group in groups})
        each = "/".join(map(str, sizes))
        spread = f"{each} in each of {len({g.layer for g in groups})} layers ({len(groups)} groups)"
        kinds[UNIT_NAMES[kind]] = str(len(groups)) if kind == "block" else spread
    return {
        "model": model,
        "family": architecture.family,
        "space": space.name,
        "parameters": {"total": space.num_parameters, "prunable": space.num_prunable},
        "units": kinds,
        "reachable": {"lowest keep of total": round(low / space.num_parameters, 4), "parameters": f"{low} to {high}"},
        "budgets": {f"keep {keep} of total": _left(space, keep, low) for keep in BUDGETS},
        "fingerprint": space.fingerprint,
    }


def _left(space: PruningSpace, keep: float, low: int) -> str:
    target = Budget(keep=keep).target(space)
    if target < low:
        return "not reachable"
    fixed = space.num_parameters - space.num_prunable
    share = (target - fixed) / space.num_prunable
    return f"{target} parameters, {share:.1%} of the prunable ones"
