"""Converts between tensors in memory and in files, where they may have other names or be split into parts."""

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
    revert_weight_conversion,
)

Pattern = str | None
"""The pattern that a stored name matches if several tensors become one; None for a whole tensor."""


class Conversion:
    """The rules that transformers applies to the files of `model`'s class; the model needs no weights."""

    def __init__(self, model: PreTrainedModel) -> None:
        rules = get_model_conversion_mapping(model)
        self.model = model
        self.shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        self._expected = model.state_dict()
        self._renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
        self._converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
        self._by_pattern = {pattern: rule for rule in self._converters for pattern in rule.source_patterns}

    def sources(self, keys: Iterable[str]) -> dict[str, dict[Pattern, list[str]]]:
        """The stored `keys` that every tensor of the model is made of, by pattern; other keys are ignored."""
        found: dict[str, dict[Pattern, list[str]]] = {}
        for key in sorted(keys, key=dot_natural_key):
            name, pattern = rename_source_key(
                key, self._renamings, self._converters, self.model.base_model_prefix, self._expected
            )
            if name not in self.shapes and key in self.shapes:
                name, pattern = key, None
            if name in self.shapes:
                found.setdefault(name, {}).setdefault(pattern, []).append(key)
        return found

    def joins_by_row(self, name: str, shapes: Mapping[Pattern, Sequence[tuple[int, ...]]]) -> bool:
        """Whether each part of these shapes belongs to one row of `name`, so that rows can be joined separately."""
        rule = next((self._by_pattern[pattern] for pattern in shapes if pattern in self._by_pattern), None)
        if rule is None or set(rule.source_patterns) != set(shapes):
            return False
        first: Any = rule.operations[0]
        rows = self.shapes[name][0]
        if not isinstance(first, MergeModulelist) or first.dim or any(len(parts) != rows for parts in shapes.values()):
            return False
        empty = {pattern: [torch.empty(part, device="meta") for part in parts] for pattern, parts in shapes.items()}
        return tuple(self.join(name, empty).shape) == self.shapes[name]

    def join(self, name: str, parts: Mapping[Pattern, Iterable[Tensor]]) -> Tensor:
        """Join parts to the tensor `name` or to some of its rows."""
        rule: Any = deepcopy(next(self._by_pattern[pattern] for pattern in parts if pattern is not None))
        for pattern, tensors in parts.items():
            for tensor in tensors:
                rule.add_tensor(name, name, pattern, tensor)
        joined = rule.convert(name, model=self.model, config=self.model.config)[name]
        return joined[0] if isinstance(joined, list) else joined

    def split(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors as they are stored: under their stored names, and in parts."""
        return revert_weight_conversion(self.model, dict(tensors))

    def part(self, name: str, row: Tensor, pattern: str) -> Tensor:
        """The stored part of one row of the tensor `name` whose name matches `pattern`."""
        parts = self.split({name: row})
        return parts[self.sources(parts)[name][pattern][0]]
