"""Writing GGUF files tensor by tensor, and reading them."""

import math
from pathlib import Path

import numpy as np
import torch
from gguf import GGML_QUANT_VERSION, GGMLQuantizationType, GGUFReader, GGUFWriter, LlamaFileType
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import quantize
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tuneprune.compress.shape import Shape
from tuneprune.export.targets.gguf import metadata, vocabulary
from tuneprune.export.targets.gguf.architectures import Host
from tuneprune.export.targets.gguf.tensors import Constant, Piece, tensors
from tuneprune.export.weights import Weights

TYPES = {
    "f32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "f16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "bf16": (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
}
"""Types written here; llama.cpp makes the others from a file of one of these types."""


def write(
    weights: Weights, file: Path, shape: Shape, host: Host, kind: str, tokenizer: PreTrainedTokenizerBase | None
) -> str | None:
    """Write one file of an exported folder; only one of its tensors is in memory at a time.

    Args:
        kind: a key of `TYPES`.
        tokenizer: what goes into the file; None leaves it without a tokenizer.

    Returns:
        A note on differences from the model's own tokenizer.

    Raises:
        UnsupportedExport: a tensor or a tokenizer that has no place in the file.
    """
    pieces = tensors(weights, shape, host)
    rows = next(piece.shape[0] for piece in pieces if piece.name == "token_embd.weight")
    words = None if tokenizer is None else vocabulary.read(tokenizer, rows)
    writer = GGUFWriter(file, host.name)
    writer.add_file_type(TYPES[kind][1])
    writer.add_quantization_version(GGML_QUANT_VERSION)
    writer.add_vocab_size(rows)
    metadata.write(writer, shape, host)
    name = None if words is None else words.name
    writer.add_name(name or shape.config.model_type.replace("phi3", "phi"))  # by a name llama.cpp knows special tokens
    if words is None or tokenizer is None:
        writer.add_tokenizer_model("none")
    else:
        vocabulary.write(writer, words, tokenizer)
    kinds = [_stored_as(piece, TYPES[kind][0]) for piece in pieces]
    for piece, stored in zip(pieces, kinds, strict=True):
        writer.add_tensor_info(piece.name, piece.shape, np.dtype(np.float32), _size(piece.shape, stored), stored)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for piece, stored in zip(pieces, kinds, strict=True):
            writer.write_tensor_data(_encoded(piece.make(weights), stored))
    finally:
        writer.close()
    return None if words is None else words.note


def ftype(name: str) -> int:
    """llama.cpp's number of a quantised type."""
    return int(LlamaFileType[f"MOSTLY_{name}"])


def stored_type(weights: Weights, shape: Shape) -> str:
    """The type that holds the folder's own weights without loss."""
    stored = weights[f"{shape.architecture.embed}.weight"].dtype
    return {torch.bfloat16: "bf16", torch.float16: "f16"}.get(stored, "f32")


def read_back(file: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Dims (outputs first) and type of every tensor in a file."""
    return {
        tensor.name: (tuple(int(size) for size in reversed(tensor.shape)), tensor.tensor_type.name)
        for tensor in GGUFReader(file).tensors
    }


def _stored_as(piece: Piece | Constant, kind: GGMLQuantizationType) -> GGMLQuantizationType:
    """How a tensor is stored: vectors and routers in float32, and what does not fill whole blocks in float16."""
    if len(piece.shape) == 1 or "ffn_gate_inp" in piece.name:
        return GGMLQuantizationType.F32
    if piece.shape[-1] % GGML_QUANT_SIZES[kind][0]:
        return GGMLQuantizationType.F16
    return kind


def _size(shape: tuple[int, ...], kind: GGMLQuantizationType) -> int:
    """Bytes of a tensor."""
    block, size = GGML_QUANT_SIZES[kind]
    return math.prod(shape) // block * size


def _encoded(values: Tensor, kind: GGMLQuantizationType) -> np.ndarray:
    """The bytes of a tensor."""
    return quantize(values.float().contiguous().numpy(), kind)
