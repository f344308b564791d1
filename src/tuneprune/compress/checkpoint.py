"""The safetensors files of a model, read a few rows at a time."""

from collections.abc import Collection, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils.hub import cached_file, get_checkpoint_shard_files

from tuneprune.compress.conversion import Conversion, Pattern
from tuneprune.errors import TunePruneError
from tuneprune.system import model_folder

EQUAL_RUN = 2**22
"""How many numbers of two tensors are compared at once."""


class Checkpoint:
    """Stored tensors by their names in the loaded model.

    A file is opened for every read and closed again: while it is open, everything read from it counts as memory of the
    process.
    """

    def __init__(self, files: list[Path], model: PreTrainedModel) -> None:
        """Read the headers of the files of `model`, which needs no weights.

        Raises:
            SafetensorError: a damaged file.
        """
        self._files: dict[str, Path] = {}
        self._types: dict[str, str] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        for file in files:
            with safe_open(file, framework="pt") as stored:
                for key in stored.keys():  # noqa: SIM118  (not a mapping)
                    view = stored.get_slice(key)
                    self._files[key], self._types[key] = file, str(view.get_dtype())
                    self._shapes[key] = tuple(view.get_shape())
        self._conversion = Conversion(model)
        self._held = self._conversion.sources(self._files)
        self._sources = {name: sources for name, sources in self._held.items() if self._are_readable(name, sources)}

    @classmethod
    def find(cls, model_id: str, model: PreTrainedModel, *, local_files_only: bool = False) -> "Checkpoint | None":
        """The files of a folder or hub id; None if they are not readable safetensors.

        Args:
            local_files_only: whether to use only downloaded files of a hub id.

        Raises:
            ConfigError: an index names files outside its folder.
        """
        try:
            return cls(_files(model_id, local_files_only=local_files_only), model)
        except TunePruneError:
            raise
        except (OSError, ValueError, KeyError, SafetensorError):
            return None

    def __contains__(self, name: object) -> bool:
        """Whether the tensor is stored in the shape that it has in the model, and can be read by rows."""
        return name in self._sources

    def holds(self, name: str) -> bool:
        """Whether the files have a tensor of that name, in any shape."""
        return name in self._held

    def names(self) -> Collection[str]:
        """The names in the files."""
        return self._files.keys()

    def misfits(self) -> Iterator[tuple[str, tuple[int, ...], tuple[int, ...]]]:
        """Tensors that are stored whole, but not in the model's shape: name, stored shape, and the model's."""
        for name, sources in self._held.items():
            for key in sources.get(None, ()):
                if self._shapes[key] != self._conversion.shapes[name]:
                    yield key, self._shapes[key], self._conversion.shapes[name]

    def types(self) -> dict[str, int]:
        """How many numbers of the model are stored in each type, such as `BF16`."""
        counts: dict[str, int] = {}
        keys = {key for sources in self._held.values() for stored in sources.values() for key in stored}
        for key in keys:
            counts[self._types[key]] = counts.get(self._types[key], 0) + prod(self._shapes[key])
        return counts

    def are_equal(self, name: str, other: str) -> bool:
        """Whether two tensors, in the model's shapes, have the same numbers; they are read in runs of rows."""
        if name not in self or other not in self:
            return False
        length, width = self._conversion.shapes[name][0], prod(self._conversion.shapes[name][1:])
        step = max(1, EQUAL_RUN // max(1, width))
        starts = range(0, length, step)
        return all(
            torch.equal(*(self.rows(which, start, start + step).double() for which in (name, other)))
            for start in starts
        )

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """The tensor's rows from `start` to `stop`, in the stored precision."""
        sources = self._sources[name]
        if None in sources:
            return self._read(sources[None][0], start, stop)
        parts = {pattern: [self._read(key) for key in keys[start:stop]] for pattern, keys in sources.items()}
        return self._conversion.join(name, parts)

    def _read(self, key: str, start: int = 0, stop: int | None = None) -> Tensor:
        with safe_open(self._files[key], framework="pt") as stored:
            return stored.get_slice(key)[start:stop]

    def _are_readable(self, name: str, sources: Mapping[Pattern, list[str]]) -> bool:
        found = {pattern: [self._shapes[key] for key in keys] for pattern, keys in sources.items()}
        if None in found:
            return found == {None: [self._conversion.shapes[name]]} and len(self._conversion.shapes[name]) > 0
        return self._conversion.joins_by_row(name, found)


def _files(model_id: str, *, local_files_only: bool) -> list[Path]:
    """The weight file, or the files that an index names.

    Raises:
        OSError: there are none.
    """
    where: Any = {"local_files_only": local_files_only}
    try:
        file = cached_file(model_id, SAFE_WEIGHTS_NAME, **where)
        return [Path(str(file))]
    except OSError:
        index = cached_file(model_id, SAFE_WEIGHTS_INDEX_NAME, **where)
        model_folder.check_index(model_id, "model")
        return [Path(file) for file in get_checkpoint_shard_files(model_id, index, **where)[0]]
