"""Safetensors files whose tensors are computed while they are written, so that no file has to fit into memory.

The safetensors library needs all tensors of a file in memory. The format is a header (its length in eight
bytes, then JSON) and the tensors' bytes; see https://github.com/huggingface/safetensors.
"""

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from torch import Tensor
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from tuneprune.compress import Streamed
from tuneprune.errors import ConfigError
from tuneprune.system.progress import Progress

DTYPES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.bool: "BOOL",
}
"""Names of precisions in safetensors, in the order of a file: wide ones first, so that all tensors are aligned."""


def check_size(size: str) -> None:
    """Refuse a size of files that cannot be read.

    Raises:
        ConfigError: the message says how to write sizes.
    """
    try:
        split_torch_state_dict_into_shards({}, max_shard_size=size)
    except ValueError as error:
        raise ConfigError(
            f"max_shard_size: `{size}` is not a size. Write a number and TB, GB, MB or KB: 5GB."
        ) from error


def write_shards(streamed: Streamed, folder: Path, max_shard_size: str, progress: Progress) -> None:
    """Write the model's tensors to one or more files, depending on their size, with an index where there are several.

    Names and contents are those of `save_pretrained`.
    """
    pattern = SAFE_WEIGHTS_NAME.replace(".safetensors", "{suffix}.safetensors")
    split = split_torch_state_dict_into_shards(
        streamed.tensors, filename_pattern=pattern, max_shard_size=max_shard_size
    )
    files = split.filename_to_tensors
    for number, (file, keys) in enumerate(files.items(), start=1):
        title = f"file {number} of {len(files)}"

        def done(count: int, title: str = title, total: int = len(keys)) -> None:
            progress.item(title, count, total)

        write_file(folder / file, {key: streamed.tensors[key] for key in keys}, streamed.runs, done)
    if split.is_sharded:
        model: Any = streamed.model
        content = {
            "metadata": {"total_parameters": model.num_parameters(), **split.metadata},
            "weight_map": split.tensor_to_filename,
        }
        text = json.dumps(content, indent=2, sort_keys=True) + "\n"
        (folder / SAFE_WEIGHTS_INDEX_NAME).write_text(text, encoding="utf8")


def write_file(
    path: Path,
    tensors: Mapping[str, Tensor],
    runs: Callable[[str], Iterator[Tensor]],
    done: Callable[[int], None],
) -> None:
    """Write one file, with the same bytes as the safetensors library.

    Args:
        tensors: names, shapes and precisions; the values are ignored.
        runs: the values of a tensor, as runs of its rows.
        done: called with the number of tensors written so far.
    """
    order = sorted(tensors, key=lambda key: (list(DTYPES).index(tensors[key].dtype), key))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for key in order:
        start, end = end, end + tensors[key].nbytes
        facts = {"dtype": DTYPES[tensors[key].dtype], "shape": list(tensors[key].shape), "data_offsets": [start, end]}
        header[key] = facts
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for count, key in enumerate(order, start=1):
            for run in runs(key):
                file.write(run.contiguous().view(-1).view(torch.uint8).numpy().data)
            assert file.tell() == 8 + len(text) + header[key]["data_offsets"][1], f"`{key}` is not of its size"
            done(count)
