"""torchao: int8 weights in a Hugging Face folder."""

from pathlib import Path
from typing import Any, ClassVar, Literal

from tuneprune.compress.shape import Shape
from tuneprune.export.quantised import folder as quantised
from tuneprune.export.quantised.widths import refuse_mixture
from tuneprune.export.reference import Reference
from tuneprune.export.targets.base import Target

CONFIGS = {"int8": "Int8WeightOnlyConfig", "int8_dynamic": "Int8DynamicActivationInt8WeightConfig"}
"""Of its 4-bit formats none is both packed and for CPUs, so none could be proved here: use `bnb:type=nf4`."""


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
        settings = {"library": "torchao", "options": {"config": CONFIGS[self.type]}, "keep": quantised.FLOAT}
        quantised.write(source, folder, shape, settings)

    def prove(self, folder: Path, reference: Reference, shape: Shape) -> dict[str, Any]:
        """Load it in a fresh process; every weight lies within a rounding step of its float value."""
        return quantised.prove(folder, reference, shape)
