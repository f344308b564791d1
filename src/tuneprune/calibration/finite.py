"""Guards against bad numbers: sums that skip batches with non-finite values, and weights that stay in range."""

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from tuneprune.calibration.batch import Batch
from tuneprune.errors import NonFinite

Accepts = Callable[[Batch, Iterable[Tensor]], bool]
"""Whether everything computed from a batch is finite, on all processes; otherwise the caller leaves the batch out."""

WEIGHT_LIMIT = 1e15
"""The limit of trained weights: above it float32 squares and products of two overflow, and no model needs them."""
ADAM_REACH = 10.0
"""An Adam step moves a weight by fewer learning rates than this: |m| / sqrt(v) is below 3.2 for betas 0.9, 0.999."""


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether all numbers are finite; synchronises once per device."""
    by_device: dict[torch.device, list[Tensor]] = {}
    for tensor in tensors:
        by_device.setdefault(tensor.device, []).append(tensor.detach())
    return all(_is_finite_sum(own) or _all_finite(own) for own in by_device.values())


def _is_finite_sum(tensors: Sequence[Tensor]) -> bool:
    """Whether the sum of all numbers is finite, which it is not if any of them is bad; several times faster."""
    sums = [tensor.sum(dtype=torch.promote_types(tensor.dtype, torch.float32)).float() for tensor in tensors]
    return bool(torch.stack(sums).isfinite().all())


def _all_finite(tensors: Sequence[Tensor]) -> bool:
    """The same number by number, because a sum of large numbers may overflow."""
    return bool(torch.stack([tensor.isfinite().all() for tensor in tensors]).all())


def accepts_here(_: Batch, tensors: Iterable[Tensor]) -> bool:
    """The verdict of a single process."""
    return all_finite(tensors)


class FiniteSums:
    """Named running sums over batches. A batch adds all of its numbers, or none if one is not finite.

    Memory: the numbers of one batch are held in addition to the sums until the batch is closed.
    """

    def __init__(self, accepts: Accepts = accepts_here) -> None:
        self.accepts = accepts
        self.totals: dict[str, Tensor] = {}
        self.drawn = self.counted = 0
        self._batch: dict[str, Tensor] = {}

    def add(self, name: str, value: Tensor) -> None:
        """Add to a sum; it counts when the batch is closed, and belongs to this object from now on."""
        self._batch[name] = self._batch[name].add_(value) if name in self._batch else value

    def close(self, batch: Batch, *shown: Tensor) -> bool:
        """End a batch; returns whether it counts. The `shown` tensors, such as its loss, have to be finite too."""
        fresh, self._batch = self._batch, {}
        self.drawn += 1
        if not self.accepts(batch, [*fresh.values(), *shown]):
            return False
        self.counted += 1
        for name, value in fresh.items():
            self.totals[name] = self.totals[name].add_(value) if name in self.totals else value
        return True

    def result(self) -> dict[str, Tensor]:
        """The sums.

        Raises:
            NonFinite: no batch counted.
        """
        refuse_none(self.counted, self.drawn)
        return self.totals


def refuse_none(counted: int, drawn: int) -> None:
    """Refuse to decide without data.

    Raises:
        NonFinite: batches were drawn, but none counted.
    """
    if drawn and not counted:
        raise none_finite(drawn)


def none_finite(drawn: int) -> NonFinite:
    """The error of calibration without a single finite batch."""
    return NonFinite(
        f"None of {drawn} calibration batches gave finite numbers, so there is nothing to decide by. Check the base"
        " model's weights with `tuneprune evaluate`, and the calibration data; on a GPU try tune.precision=fp32."
    )


def stays_in_range(parameters: Sequence[Tensor], rate: float, weight_decay: float = 0.0) -> bool:
    """Whether any step of Adam or AdamW at this learning rate leaves all weights below `WEIGHT_LIMIT`."""
    if not parameters:
        return True
    largest = torch.nn.utils.get_total_norm(parameters, norm_type=math.inf).item()
    decayed = max(1.0, abs(1 - rate * weight_decay))
    return largest * decayed + ADAM_REACH * rate < WEIGHT_LIMIT
