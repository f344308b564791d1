"""Finds the groups that a run file names by layer, kind or name."""

from fnmatch import fnmatchcase

from tuneprune.errors import ConfigError, printable
from tuneprune.structure.space import Group, PruningSpace


def groups_at(space: PruningSpace, entry: int | str, key: str) -> list[Group]:
    """The groups of a layer (negative numbers count from the end), of a kind, or matching a pattern with `*`.

    Args:
        key: the key of the run file that names them.

    Raises:
        ConfigError: there are none, with the possible values.
    """
    if isinstance(entry, str):
        found = [group for group in space.groups if group.kind == entry or fnmatchcase(group.name, entry)]
        if found:
            return found
        kinds = ", ".join(dict.fromkeys(group.kind for group in space.groups))
        raise ConfigError(
            f"{key}: space `{space.name}` has no units `{printable(entry)}` on this model. Name a kind ({kinds}) or"
            f" groups, such as {space.groups[-1].name}, with * for any part."
        )
    num_layers = 1 + max(group.layer for group in space.groups)
    if any(group.kind == "hidden" for group in space.groups):
        raise ConfigError(
            f"{key}: layer {entry} has no units of its own in space `{space.name}`, whose dims belong to all layers."
            " Leave it out, or choose another space."
        )
    if not -num_layers <= entry < num_layers:
        raise ConfigError(
            f"{key}: there is no layer {entry}; this model has {num_layers}. Use 0 to {num_layers - 1}, or -1 to"
            f" {-num_layers} from the end."
        )
    return [group for group in space.groups if group.layer == entry % num_layers]


def exact_widths(space: PruningSpace, widths: dict[str, int]) -> dict[str, int]:
    """The units that every group keeps: the given number, or all if the group is not named.

    Raises:
        ConfigError: an unknown name, more units than a group has, or all units of all groups.
    """
    kept = {group.name: group.size for group in space.groups}
    for name, width in widths.items():
        for group in groups_at(space, name, "budget.widths"):
            if group.kind == "block":
                raise ConfigError(
                    "budget.widths sets how wide layers are, but space `depth` drops whole layers. Use budget.keep."
                )
            if width > group.size:
                raise ConfigError(
                    f"budget.widths: {name}: {width} is more than the {group.size} units of {group.name}. Use at most"
                    f" {group.size}."
                )
            kept[group.name] = width
    if all(kept[group.name] == group.size for group in space.groups):
        raise ConfigError("budget.widths removes nothing: these are the model's own widths. Lower one of them.")
    return kept
