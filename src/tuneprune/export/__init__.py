"""From a pruned model in memory to files that others load, and the proof that they say the same."""

from collections.abc import Sequence

from tuneprune.errors import UnsupportedExport, suggest
from tuneprune.export.hf import Loader, weight_bytes, write
from tuneprune.export.proof import Probe, prove, take_probe
from tuneprune.structure.budget import Budget
from tuneprune.structure.space import PruningSpace

__all__ = ["Loader", "Probe", "check", "is_always_stock", "prove", "take_probe", "weight_bytes", "write"]

TARGETS = ("hf",)
PLANNED = ("gguf", "vllm")


def check(targets: Sequence[str], space: PruningSpace, budget: Budget) -> None:
    """Refuse, before any training, what cannot be exported.

    Raises:
        UnsupportedExport: a target that does not exist, or not yet.
    """
    for target in targets:
        if target in PLANNED:
            raise UnsupportedExport(f"Export `{target}` is not there yet. {_way_out(space, budget)}")
        if target not in TARGETS:
            known = ", ".join(TARGETS)
            raise UnsupportedExport(f"Unknown export `{target}`; known exports are {known}.{suggest(target, TARGETS)}")


def is_always_stock(space: PruningSpace, budget: Budget) -> bool:
    """Whether a stock class holds every decision within the budget; for other settings some plans may be lucky."""
    kinds = {group.kind for group in space.groups}
    return kinds in ({"block"}, {"hidden"}) or (kinds <= {"kv_group", "mlp_channel"} and budget.per_layer == "uniform")


def _way_out(space: PruningSpace, budget: Budget) -> str:
    """What works instead, given whether the result is a stock model."""
    if is_always_stock(space, budget):
        return "Use export: [hf]; the result is a stock model, which other tools can convert."
    return (
        "Use export: [hf]; with space `width` and budget.per_layer=uniform it is a stock model, which other"
        " tools can convert."
    )
