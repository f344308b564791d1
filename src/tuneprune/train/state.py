"""Everything that a tuning needs to resume exactly where it was, and its form on disk: JSON and named tensors.

No pickle is involved (docs/adr/0006-state-without-pickle.md). JSON holds what it can hold exactly: None, booleans,
integers, strings, finite floats and lists. Everything else is an object with one key: `{"dict": [[key, value], ...]}`,
`{"tuple": [...]}`, `{"float": "nan"}`, `{"tensor": name}`.
"""

import math
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

PLAIN = (type(None), bool, int, str)


class Stateful(Protocol):
    """Anything with a state of its own."""

    def state_dict(self) -> dict[str, Any]:
        """The state, on any device."""
        ...

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Continue from a `state_dict`."""
        ...


def capture(model: PreTrainedModel, parts: Mapping[str, Stateful]) -> dict[str, Any]:
    """Trained weights, the state of every part by its name, and the random states of torch."""
    cuda = torch.cuda.get_rng_state_all() if model.device.type == "cuda" else []
    return {
        "parameters": {name: p.detach() for name, p in model.named_parameters() if p.requires_grad},
        "random": torch.get_rng_state(),
        "cuda_random": cuda,
        **{name: part.state_dict() for name, part in parts.items()},
    }


def restore(model: PreTrainedModel, parts: Mapping[str, Stateful], state: dict[str, Any]) -> None:
    """Restore what `capture` returned."""
    named = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in state["parameters"].items():
            named[name].copy_(value)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    torch.set_rng_state(state["random"])
    if state["cuda_random"]:
        torch.cuda.set_rng_state_all(state["cuda_random"])


def state_bytes(model: PreTrainedModel, optimizer: torch.optim.AdamW, search: Stateful) -> int:
    """The least size of a checkpoint, known before the first step: trained weights, moments, the search's state."""
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    moments = [parameter for group in optimizer.param_groups for parameter in group["params"]] * 2
    own = flatten(search.state_dict())[1].values()
    return sum(tensor.nbytes for tensor in [*weights, *moments, *own])


def flatten(state: object) -> tuple[Any, dict[str, Tensor]]:
    """The JSON content of a state, and its tensors by name, on the CPU.

    Tensors that share memory are stored once, and are one tensor again after `unflatten`. Subclasses of dict become
    dicts, parameters become tensors.

    Raises:
        TypeError: a value of another type than those above, or a tensor that is not strided; names its place.
    """
    tensors: dict[str, Tensor] = {}
    names: dict[tuple[object, ...], str] = {}
    storages: set[int] = set()

    def tensor(value: Tensor, place: str) -> dict[str, str]:
        if value.layout is not torch.strided or value.is_quantized or value.is_meta:
            raise TypeError(f"state{place} is not a plain tensor but {value.layout} on {value.device}")
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
        raise TypeError(f"state{place} is of type {type(value).__name__}, which a checkpoint cannot hold")

    return plain(state, ""), tensors


def unflatten(content: object, tensors: Mapping[str, Tensor]) -> Any:  # noqa: ANN401  (any state)
    """The state that `flatten` took apart.

    Raises:
        ValueError: content that `flatten` does not write, or a tensor that is missing.
    """
    if isinstance(content, list):
        return [unflatten(item, tensors) for item in content]
    if not isinstance(content, dict):
        return content
    if len(content) != 1:
        raise ValueError(f"an object with the keys {', '.join(content)} is not part of a state")
    ((kind, value),) = content.items()
    if kind == "tensor" and value in tensors:
        return tensors[value]
    if kind == "float" and value in ("nan", "inf", "-inf"):
        return float(value)
    if kind == "tuple" and isinstance(value, list):
        return tuple(unflatten(item, tensors) for item in value)
    if kind == "dict" and isinstance(value, list):
        return {unflatten(key, tensors): unflatten(item, tensors) for key, item in value}
    raise ValueError(f"`{kind}` is not part of a state, or names something that is missing")
