"""Tiny GGUF files, written by our own export."""

import shutil
from pathlib import Path

import torch
from gguf import GGUFReader, GGUFValueType, GGUFWriter
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from helpers.tiny import tiny_model
from helpers.toy_tokenizer import byte_tokenizer
from tuneprune import export
from tuneprune.export import targets

DTYPES = {"f16": torch.float16, "bf16": torch.bfloat16}


def tiny(variant: str, kind: str = "f32", **changes) -> PreTrainedModel:
    """A tiny model in the precision of a type of GGUF file."""
    return tiny_model(variant, dtype=DTYPES.get(kind, torch.float32), **{"vocab_size": 300} | changes)


def write_gguf(
    file: Path, model: PreTrainedModel, kind: str = "f32", tokenizer: PreTrainedTokenizerBase | None = None
) -> Path:
    """Write a model to `file`, and to the Hugging Face folder `hf` next to it, which is returned."""
    folder, out = file.parent / "hf", file.parent / "exported"
    export.write(model, tokenizer or byte_tokenizer(), folder)
    export.convert(folder, targets.build(f"gguf:type={kind}"), out, None)
    shutil.move(out / f"model-{kind}.gguf", file)
    shutil.rmtree(out)
    return folder


def rewrite(file: Path, *, drop: int = 0, **changes: str | float) -> None:
    """Write a file again without its last `drop` tensors, and with other metadata; `__` stands for a dot in a key."""
    reader, new = GGUFReader(file), file.with_suffix(".new")
    values = {name: (field.contents(), *field.types) for name, field in reader.fields.items() if "GGUF." not in name}
    for name, changed in changes.items():
        values[name.replace("__", ".")] = (changed, GGUFValueType.get_type(changed))
    writer = GGUFWriter(new, values.pop("general.architecture")[0])
    for name, (content, kind, *inner) in values.items():
        writer.add_key_value(name, content, kind, sub_type=inner[-1] if inner else None)
    for tensor in reader.tensors[: len(reader.tensors) - drop]:
        writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    new.replace(file)
