"""Endless batches of packed rows whose position is two numbers."""

from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from tuneprune.calibration.labels import IGNORED
from tuneprune.data.encoding import Encoded
from tuneprune.errors import ConfigError, DataError

if TYPE_CHECKING:  # costs seconds to import
    from torch import Tensor


class Stream:
    """Endless batches of packed rows; its position is two numbers, so a resumed stream continues exactly.

    Order and packing of an epoch derive from (seed, epoch) alone. An epoch holds every document floor(weight)
    times and a random share of the documents once more, so that the expected count is the weight.

    A batch holds `input_ids`, `labels` (-100 = ignored) and `position_ids`, each [rows, length] int64.
    Positions restart at 0 with every document of a packed row: transformers then masks attention between
    documents itself, for sdpa and eager attention, provided that the model is called with `use_cache=False`
    and no `attention_mask`. The first label of every document is -100, so no loss crosses documents.

    Args:
        weights: one per document.
        batch_size: rows of a global batch, over all processes.
        max_length: the most tokens in a row.
        pad_id: the padding token; its labels are ignored.
        origin: where the document at a position comes from, for messages.

    Raises:
        DataError: no documents.
        ConfigError: a batch size that cannot be divided among the processes.
    """

    def __init__(
        self,
        encoded: Sequence[Encoded],
        weights: Sequence[float] | None = None,
        *,
        batch_size: int,
        max_length: int,
        pad_id: int,
        seed: int,
        packing: bool = True,
        rank: int = 0,
        world_size: int = 1,
        origin: Callable[[int], str] = "document {}".format,
    ) -> None:
        if not encoded:
            raise DataError("there is nothing to stream: the data holds no documents.")
        if batch_size < 1 or batch_size % world_size:
            raise ConfigError(f"a batch of {batch_size} rows cannot be shared by {world_size} processes.")
        if max(len(document.input_ids) for document in encoded) > max_length:
            raise ConfigError(f"a document is longer than max_length = {max_length}: encode it with that length.")
        self._encoded = encoded
        self._weights = np.asarray(weights if weights is not None else [1.0] * len(encoded), dtype=np.float64)
        if self._weights.shape != (len(encoded),):
            raise ConfigError(f"{len(encoded)} documents need as many weights, got {self._weights.size}.")
        self._batch_size, self._max_length, self._pad_id = batch_size, max_length, pad_id
        self._seed, self._packing, self._rank, self._world_size = seed, packing, rank, world_size
        self._origin = origin
        self._drawn: list[list[int]] = []
        self._epoch, self._row = 0, 0
        self._rows = self._rows_of(0)

    def __len__(self) -> int:
        """Rows in the current epoch."""
        return len(self._rows)

    def next(self) -> "dict[str, Tensor]":
        """This process's rows of the next global batch: rows rank, rank + world_size, ..."""
        import torch

        rows = []
        while len(rows) < self._batch_size:
            if self._row == len(self._rows):
                self._enter(self._epoch + 1)
            rows.append(self._rows[self._row])
            self._row += 1
        length = max(self._length(row) for row in rows)  # of the global batch, so that every process agrees
        self._drawn = rows[self._rank :: self._world_size]
        columns = zip(*(self._tensors(row, length) for row in self._drawn), strict=True)
        return dict(zip(("input_ids", "labels", "position_ids"), map(torch.stack, columns), strict=True))

    def last_origins(self) -> list[str]:
        """Where the examples of this process's last batch come from, in row order; each once, none before a draw."""
        return list(dict.fromkeys(self._origin(index) for row in self._drawn for index in row))

    def state_dict(self) -> dict[str, int]:
        """The position: epoch and row."""
        return {"epoch": self._epoch, "row": self._row}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue at a position that `state_dict` gave."""
        self._enter(state["epoch"])
        self._row = state["row"]
        self._drawn = []

    def _enter(self, epoch: int) -> None:
        self._epoch, self._row = epoch, 0
        self._rows = self._rows_of(epoch)

    def _rows_of(self, epoch: int) -> list[list[int]]:
        """Rows of an epoch as positions of documents."""
        random = np.random.default_rng([self._seed, epoch])
        whole = np.floor(self._weights)
        extra = self._weights - whole - random.random(len(self._encoded))
        copies = whole.astype(np.int64) + (extra > 0)
        if not copies.any():
            copies[extra.argmax()] = 1  # tiny weights: an epoch must not be empty
        order = random.permutation(np.repeat(np.arange(len(self._encoded)), copies)).tolist()
        rows = self._packed(order) if self._packing else [[index] for index in order]
        return [rows[row] for row in random.permutation(len(rows))]

    def _packed(self, order: list[int]) -> list[list[int]]:
        """Documents in as few rows as best-fit-decreasing finds; the order decides between equal lengths."""
        rows: list[list[int]] = []
        rooms: list[tuple[int, int]] = []  # (tokens of room left, row), ascending
        for index in sorted(order, key=lambda index: -len(self._encoded[index].input_ids)):
            needed = len(self._encoded[index].input_ids)
            position = bisect_left(rooms, (needed, 0))
            if position < len(rooms):
                room, row = rooms.pop(position)
            else:
                room, row = self._max_length, len(rows)
                rows.append([])
            rows[row].append(index)
            insort(rooms, (room - needed, row))
        return rows

    def _length(self, row: list[int]) -> int:
        return sum(len(self._encoded[index].input_ids) for index in row)

    def _tensors(self, row: list[int], length: int) -> "tuple[Tensor, Tensor, Tensor]":
        """Tokens, labels and positions of one row, padded to `length`."""
        import torch

        ids, labels, positions = [], [], []
        for index in row:
            document = self._encoded[index]
            ids += document.input_ids
            labels += [IGNORED, *document.labels[1:]]
            positions += range(len(document.input_ids))
        padding = length - len(ids)
        # Padding is a document of its own in packed rows; behind a single one, causality already shields it.
        first = 0 if self._packing else len(ids)
        positions += range(first, first + padding)
        ids += [self._pad_id] * padding
        labels += [IGNORED] * padding
        return torch.tensor(ids), torch.tensor(labels), torch.tensor(positions)
