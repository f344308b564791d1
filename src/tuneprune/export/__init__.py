"""From a pruned model in memory to files for other programs, and the proof that they compute the same."""

from collections.abc import Callable, Sequence

from tuneprune.compress.shape import Shape
from tuneprune.export.conversion import convert
from tuneprune.export.expected_shape import foresee, loads_as
from tuneprune.export.export_folder import add_to_export, check_replaceable, placed
from tuneprune.export.hf import Loader, weight_bytes, write
from tuneprune.export.probes.memory import memory_use
from tuneprune.export.proof import Probe, compare, prove, take_probe
from tuneprune.export.reference import Reference, load_exported, take_reference
from tuneprune.export.shards import check_size
from tuneprune.export.targets import HUGGING_FACE, build, registry
from tuneprune.export.targets.base import Target

__all__ = [
    "Loader",
    "Probe",
    "Reference",
    "Target",
    "add_to_export",
    "check_replaceable",
    "check_size",
    "check_targets",
    "compare",
    "convert",
    "foresee",
    "load_exported",
    "loads_as",
    "memory_use",
    "placed",
    "prove",
    "registry",
    "take_probe",
    "take_reference",
    "targets_by_label",
    "weight_bytes",
    "write",
]


def targets_by_label(texts: Sequence[str]) -> dict[str, Target]:
    """The targets other than the Hugging Face folder, by a label that is a valid folder name.

    Raises:
        UnsupportedExport: an unknown target.
        ConfigError: an option that the target does not have, or a value out of range.
    """
    return {text.replace(":", "-").replace("=", "-"): build(text) for text in texts if text != HUGGING_FACE}


def check_targets(texts: Sequence[str], shape: Callable[[], Shape]) -> None:
    """Refuse, before any training, what cannot be exported.

    Args:
        shape: the shape that the run may give the model; only called where a target needs it.

    Raises:
        UnsupportedExport: a target that does not exist, whose packages are missing, or that cannot hold the shape.
    """
    targets = targets_by_label(texts).values()
    if not targets:
        return
    foreseen = shape()
    for target in targets:
        target.refuse(foreseen)  # before packages: nobody should install one in vain
        target.require()
