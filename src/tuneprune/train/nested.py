"""Nested state as plain JSON and named tensors, and back, exactly: no pickle on either way.

JSON holds what it can hold exactly: None, booleans, integers, strings and finite floats. The rest is an object with one
key: `{"dict": [[key, value], ...]}`, `{"tuple": [...]}`, `{"float": "nan"}`, `{"tensor": name}`; a list is a list.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

PLAIN = (type(None), bool, int, str)


def flatten(state: object) -> tuple[Any, dict[str, Tensor]]:
    """What JSON holds of a state, and its tensors by name, on the CPU.

    Tensors that are the same memory are stored once, and are one tensor again after `unflatten`. Subclasses of dict
    become dicts, parameters become tensors.

    Raises:
        TypeError: something else than the types above, or a tensor that is not plain; says where.
    """
    tensors: dict[str, Tensor] = {}
    names: dict[tuple[object, ...], str] = {}
    storages: set[int] = set()

    def tensor(value: Tensor, place: str) -> dict[str, str]:
        if value.layout is not torch.strided or value.is_quantized or value.is_meta:
            raise TypeError(f"state{place} is no plain tensor but {value.layout} on {value.device}")
        memory = (value.device, value.data_ptr()) if value.numel() else id(value)
        same = (memory, value.dtype, value.shape, value.stride())
        if same not in names:
            names[same] = str(len(names))
            found = value.detach().cpu().contiguous()
            storage = found.untyped_storage()
            is_view = storage.nbytes() != found.nbytes or storage.data_ptr() in storages
            storages.add(storage.data_ptr())
            tensors[names[same]] = found.clone() if is_view else found  # safetensors refuses overlapping memory
        return {"tensor": names[same]}

    def plain(value: Any, place: str) -> Any:  # noqa: ANN401  (any state)
        if type(value) in PLAIN:
            return value
        if type(value) is float:
            return value if math.isfinite(value) else {"float": repr(value)}
        if isinstance(value, Tensor):
            return tensor(value, place)
        if isinstance(value, dict):
            return {"dict": [[plain(k, f"{place} (a key)"), plain(v, f"{place}[{k!r}]")] for k, v in value.items()]}
        if type(value) in (list, tuple):
            items = [plain(item, f"{place}[{index}]") for index, item in enumerate(value)]
            return items if type(value) is list else {"tuple": items}
        raise TypeError(f"state{place} is of type {type(value).__name__}, which a checkpoint does not hold")

    return plain(state, ""), tensors


def unflatten(content: object, tensors: Mapping[str, Tensor]) -> Any:  # noqa: ANN401  (any state)
    """The state that `flatten` took apart.

    Raises:
        ValueError: content that `flatten` does not write, or a tensor that is not there.
    """
    if isinstance(content, list):
        return [unflatten(item, tensors) for item in content]
    if not isinstance(content, dict):
        return content
    if len(content) != 1:
        raise ValueError(f"an object with the keys {', '.join(content)} is none of a state")
    ((kind, value),) = content.items()
    if kind == "tensor" and value in tensors:
        return tensors[value]
    if kind == "float" and value in ("nan", "inf", "-inf"):
        return float(value)
    if kind == "tuple" and isinstance(value, list):
        return tuple(unflatten(item, tensors) for item in value)
    if kind == "dict" and isinstance(value, list):
        return {unflatten(key, tensors): unflatten(item, tensors) for key, item in value}
    raise ValueError(f"`{kind}` is none of a state, or what it names is not there")
