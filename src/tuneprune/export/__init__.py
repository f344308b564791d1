"""From a pruned model in memory to files that others load, and the proof that they say the same."""

from collections.abc import Sequence

from tuneprune.errors import UnsupportedExport, suggest
from tuneprune.export.hf import Loader, weight_bytes, write
from tuneprune.export.proof import Probe, prove, take_probe
from tuneprune.structure.budget import Budget
from tuneprune.structure.space import PruningSpace

__all__ = ["Loader", "Probe", "check", "prove", "take_probe", "weight_bytes", "write"]

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


def _way_out(space: PruningSpace, budget: Budget) -> str:
    """What works instead, given whether the result is a stock model."""
    if space.name == "residual" or (space.name == "width" and budget.per_layer == "uniform"):
        return "Use export: [hf]; with equal widths it is a stock model, which other tools can convert."
    return (
        "Use export: [hf]; with space `width` and budget.per_layer=uniform it is a stock model, which other"
        " tools can convert."
    )
