"""GGUF, the file format of llama.cpp and programs built on it."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from tuneprune.compress.shape import Shape
from tuneprune.errors import TunePruneError, UnsupportedExport
from tuneprune.export.hf import weight_bytes
from tuneprune.export.probes.fresh_process import run_fresh
from tuneprune.export.reference import Reference
from tuneprune.export.targets.base import Target
from tuneprune.export.targets.gguf import architectures
from tuneprune.export.weights import Weights

QUANTISED_BY_LLAMA_CPP = {
    "q2_k": "Q2_K", "q3_k_m": "Q3_K_M", "q4_k_s": "Q4_K_S", "q4_k_m": "Q4_K_M", "q5_k_s": "Q5_K_S", "q5_k_m": "Q5_K_M",
    "q6_k": "Q6_K",
}  # fmt: skip
"""Types that only llama.cpp itself writes, and its names for them."""
COMPARED_EXACTLY = 2**30
"""Bytes of weights up to which a float32 file is also written, to prove the conversion before any rounding."""


class Gguf(Target, frozen=True):
    """A file for llama.cpp, on the architecture of llama.cpp that computes the model."""

    name = "gguf"
    title = "one file with its tokenizer, for llama.cpp"
    extra = "gguf"
    packages = ("gguf",)
    runtime = ("llama_cpp",)

    type: Literal["f32", "f16", "bf16", "q8_0", "q2_k", "q3_k_m", "q4_k_s", "q4_k_m", "q5_k_s", "q5_k_m", "q6_k"] = (
        Field(default="f16", description="how weights are stored")
    )
    tokenizer: Literal["own", "none"] = Field(default="own", description="the tokenizer inside the file")

    def refuse(self, shape: Shape) -> None:
        """Refuse a shape that no architecture of llama.cpp computes."""
        architectures.choose(shape)

    def require(self) -> None:
        """Quantising beyond 8 bits takes llama.cpp itself."""
        super().require()
        if self.type in QUANTISED_BY_LLAMA_CPP and (missing := self.not_run()):
            raise UnsupportedExport(
                f"gguf:type={self.type} is written by llama.cpp: {missing}. `type=q8_0` does not need it."
            )

    def write(self, source: Path, folder: Path, shape: Shape) -> Mapping[str, Any]:
        """Write `model-TYPE.gguf`; where rows do not fill the blocks of the type, tensors get another, as noted."""
        from tuneprune.export.targets.gguf import gguf_file, run_quantise, vocabulary

        host, file = architectures.choose(shape), folder / self.file_name
        tokenizer = vocabulary.load(source) if self.tokenizer == "own" else None
        quantised = QUANTISED_BY_LLAMA_CPP.get(self.type)
        weights = Weights(source)
        kind = self.type if quantised is None else gguf_file.stored_type(weights, shape)
        written = folder / f"{kind}.whole" if quantised else file
        note = gguf_file.write(weights, written, shape, host, kind, tokenizer)
        if quantised is not None:
            run_fresh(run_quantise, str(written), [str(file), str(gguf_file.ftype(quantised))])
            written.unlink()
        notes = [note, architectures.context_length(host, shape.config)[1]]
        return {
            "architecture": host.name,
            "other_types": self._other_types(gguf_file.read_back(file)),
            "notes": [note for note in notes if note is not None],
        }

    def prove(self, folder: Path, reference: Reference, shape: Shape) -> dict[str, Any]:
        """Run the file in llama.cpp on the CPU; where it is rounded and small enough, also a float32 one."""
        from tuneprune.export.targets.gguf import proof

        why = self.not_run()
        if why is not None:
            return {"status": "structure", "why": why, "tensors": self._check(folder, reference, shape)}
        found: dict[str, Any] = {"status": "run", "why": "llama.cpp computed it on the CPU"}
        has_tokens = self.tokenizer == "own"
        if self.type != "f32" and weight_bytes(reference.folder) <= COMPARED_EXACTLY:
            exact = Gguf(type="f32", tokenizer="none")
            with tempfile.TemporaryDirectory(prefix="tuneprune-gguf-") as scratch:
                exact.write(reference.folder, Path(scratch), shape)
                file = Path(scratch, exact.file_name)
                found["in_float32"] = proof.prove(file, "f32", reference, shape, with_tokens=False)
        return found | proof.prove(folder / self.file_name, self.type, reference, shape, with_tokens=has_tokens)

    @property
    def file_name(self) -> str:
        """The one file."""
        return f"model-{self.type}.gguf"

    def _other_types(self, stored: Mapping[str, tuple[tuple[int, ...], str]]) -> dict[str, list[str]]:
        """Matrices that have another type than asked for, by that type."""
        is_asked = (
            (lambda kind: kind.endswith("_K")) if self.type in QUANTISED_BY_LLAMA_CPP else self.type.upper().__eq__
        )
        found: dict[str, list[str]] = {}
        for name, (dims, kind) in stored.items():
            if len(dims) > 1 and not is_asked(kind):
                found.setdefault(kind, []).append(name)
        return found

    def _check(self, folder: Path, reference: Reference, shape: Shape) -> int:
        """Check that the file holds the expected tensors with their dims, and return their number."""
        from tuneprune.export.targets.gguf import gguf_file, tensors

        stored = {name: dims for name, (dims, _) in gguf_file.read_back(folder / self.file_name).items()}
        pieces = tensors.tensors(Weights(reference.folder), shape, architectures.choose(shape))
        expected = {piece.name: piece.shape for piece in pieces}
        if stored != expected:
            raise TunePruneError(f"{self.file_name}: tensors differ from those that were to be written.")
        return len(stored)
