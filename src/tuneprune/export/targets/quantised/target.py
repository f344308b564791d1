"""bitsandbytes and torchao: int8 or NF4 weights in a Hugging Face folder."""

from pathlib import Path
from typing import Any, ClassVar, Literal

from tuneprune.compress.shape import Shape
from tuneprune.errors import UnsupportedExport
from tuneprune.export.reference import Reference
from tuneprune.export.targets.base import Target
from tuneprune.export.targets.quantised import folder as quantised
from tuneprune.export.targets.quantised.widths import misfits, refuse_mixture

BNB_OPTIONS = {"int8": {"load_in_8bit": True}, "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}}
NF4_INPUTS, NF4_OUTPUTS = 64, 32
"""What NF4 divides a linear into: blocks of a row that share a scale, and the rows that the CPU kernel packs."""
TORCHAO_CONFIGS = {"int8": "Int8WeightOnlyConfig", "int8_dynamic": "Int8DynamicActivationInt8WeightConfig"}
"""Of its 4-bit formats none is both packed and for CPUs, so none could be proved here: use `bnb:type=nf4`."""


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
        found = misfits(shape, inputs=NF4_INPUTS, outputs=NF4_OUTPUTS) if self.type == "nf4" else []
        if found:
            raise UnsupportedExport(
                f"bnb:type=nf4 takes linear layers with inputs in multiples of {NF4_INPUTS} and outputs in multiples of"
                f" {NF4_OUTPUTS}, but this model has {found[0]}. Prune with budget.multiple_of: {NF4_INPUTS} where"
                " that is a width of a pruned group, or export bnb:type=int8, which takes any width."
            )

    def write(self, source: Path, folder: Path, shape: Shape) -> None:
        """Quantise while loading, and save."""
        settings = {"library": "bitsandbytes", "options": BNB_OPTIONS[self.type], "keep": quantised.FLOAT}
        quantised.write(source, folder, shape, settings)

    def prove(self, folder: Path, reference: Reference, shape: Shape) -> dict[str, Any]:
        """Load it in a fresh process; every weight lies within a rounding step of its float value."""
        return quantised.prove(folder, reference, shape)


class TorchAo(Target, frozen=True):
    """Linear layers in 8 bits, which transformers loads with torchao and torch.compile speeds up."""

    name: ClassVar[str] = "torchao"
    title: ClassVar[str] = "a Hugging Face folder in int8, with or without int8 activations (torchao)"
    extra: ClassVar[str] = "quantise"
    packages: ClassVar[tuple[str, ...]] = ("torchao",)
    runtime: ClassVar[tuple[str, ...]] = ("torchao",)

    type: Literal["int8", "int8_dynamic"] = "int8"

    def refuse(self, shape: Shape) -> None:
        """Any width will do."""
        refuse_mixture(self.name, shape)

    def write(self, source: Path, folder: Path, shape: Shape) -> None:
        """Quantise while loading, and save."""
        settings = {"library": "torchao", "options": {"config": TORCHAO_CONFIGS[self.type]}, "keep": quantised.FLOAT}
        quantised.write(source, folder, shape, settings)

    def prove(self, folder: Path, reference: Reference, shape: Shape) -> dict[str, Any]:
        """Load it in a fresh process; every weight lies within a rounding step of its float value."""
        return quantised.prove(folder, reference, shape)
