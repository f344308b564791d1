"""bitsandbytes: int8 or NF4 weights in a Hugging Face folder."""

from pathlib import Path
from typing import Any, ClassVar, Literal

from tuneprune.compress.shape import Shape
from tuneprune.errors import UnsupportedExport
from tuneprune.export.quantised import folder as quantised
from tuneprune.export.quantised.widths import misfits, refuse_mixture
from tuneprune.export.reference import Reference
from tuneprune.export.targets.base import Target

OPTIONS = {"int8": {"load_in_8bit": True}, "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}}
INPUTS, OUTPUTS = 64, 32
"""What NF4 divides a linear into: blocks of a row that share a scale, and the rows that the CPU kernel packs."""


class Bnb(Target, frozen=True):
    """Linear layers in 8 or 4 bits, which transformers loads with bitsandbytes on GPUs and CPUs."""

    name: ClassVar[str] = "bnb"
    title: ClassVar[str] = "a Hugging Face folder in int8 or NF4 (bitsandbytes)"
    extra: ClassVar[str] = "quantise"
    packages: ClassVar[tuple[str, ...]] = ("bitsandbytes",)
    runtime: ClassVar[tuple[str, ...]] = ("bitsandbytes",)

    type: Literal["int8", "nf4"] = "int8"

    def refuse(self, shape: Shape) -> None:
        """NF4 needs widths that its blocks divide; int8 takes any."""
        refuse_mixture(self.name, shape)
        found = misfits(shape, inputs=INPUTS, outputs=OUTPUTS) if self.type == "nf4" else []
        if found:
            raise UnsupportedExport(
                f"bnb:type=nf4 takes linear layers with inputs in multiples of {INPUTS} and outputs in multiples of"
                f" {OUTPUTS}, but this model has {found[0]}. Prune with budget.multiple_of: {INPUTS} where that is a"
                " width of a pruned group, or export bnb:type=int8, which takes any width."
            )

    def write(self, source: Path, folder: Path, shape: Shape) -> None:
        """Quantise while loading, and save."""
        settings = {"library": "bitsandbytes", "options": OPTIONS[self.type], "keep": quantised.FLOAT}
        quantised.write(source, folder, shape, settings)

    def prove(self, folder: Path, reference: Reference, shape: Shape) -> dict[str, Any]:
        """Load it in a fresh process; every weight lies within a rounding step of its float value."""
        return quantised.prove(folder, reference, shape)
