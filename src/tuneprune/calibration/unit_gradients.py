"""True gradients of frozen weights, reduced to sums per unit one matrix at a time, so that memory stays bounded."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tuneprune.calibration.finite import Batch, none_finite
from tuneprune.calibration.subject import Subject
from tuneprune.structure.space import Group, WeightSlice
from tuneprune.structure.weights import base_weight, by_unit, effective_weight

MAX_BATCHES = 10
"""Bad calibration batches in a row before one gives up."""


@dataclass(frozen=True)
class UnitGradients:
    """Per group and unit, over all entries that the unit couples: <w, g>, |g|^2, |w|^2, and the mean of |w|.

    `w` is the effective weight, LoRA included; `g` the gradient of the loss by it, which equals that of the frozen one.
    """

    inner: dict[str, Tensor]
    gradient_squares: dict[str, Tensor]
    weight_squares: dict[str, Tensor]
    weight_means: dict[str, Tensor]


def unit_gradients(subject: Subject) -> UnitGradients:
    """Sums over one calibration batch: one forward and one backward, under the gates that are on.

    Every matrix's gradient is reduced and freed as soon as backward has made it. A batch whose numbers are not finite
    is left out, and the next one taken.

    Raises:
        NonFinite: so many batches in a row were left out that the next would not help.
    """
    for _ in range(MAX_BATCHES):
        batch = subject.calibration()
        found, loss = _of_batch(subject, batch)
        sums = (found.inner, found.gradient_squares, found.weight_squares, found.weight_means)
        if subject.runtime.accepts(batch, [loss, *(value for part in sums for value in part.values())]):
            return found
    raise none_finite(MAX_BATCHES)


def _of_batch(subject: Subject, batch: Batch) -> tuple[UnitGradients, Tensor]:
    """The sums over one batch, finite or not, and its loss."""
    model, space = subject.model, subject.space
    sums = [{g.name: torch.zeros(g.size, dtype=torch.double) for g in space.groups} for _ in range(4)]
    result = UnitGradients(*sums)
    entries = {group.name: 0 for group in space.groups}
    pieces: dict[str, list[tuple[Group, WeightSlice]]] = {}
    for group in space.groups:
        for piece in group.slices:
            pieces.setdefault(piece.param, []).append((group, piece))

    def reduce(param: str, gradient: Tensor) -> None:
        subject.runtime.average([gradient])
        weight, slope = effective_weight(model, param).detach().float(), gradient.float()
        for group, piece in pieces[param]:
            w, g = by_unit(weight, piece, group.size), by_unit(slope, piece, group.size)
            result.inner[group.name] += (w * g).sum(1).double().cpu()
            result.gradient_squares[group.name] += g.pow(2).sum(1).double().cpu()
            result.weight_squares[group.name] += w.pow(2).sum(1).double().cpu()
            result.weight_means[group.name] += w.abs().sum(1).double().cpu()
            entries[group.name] += w.shape[1]

    weights = {param: base_weight(model, param) for param in pieces}
    with torch.enable_grad(), _gradients_of(weights, reduce):
        loss = subject.runtime.loss(batch)
        loss.backward(inputs=list(weights.values()))
    for name, count in entries.items():
        result.weight_means[name] /= max(1, count)
    return result, loss.detach()


@contextmanager
def _gradients_of(weights: dict[str, nn.Parameter], reduce: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Inside, backward hands every weight's gradient to `reduce` and drops it."""
    required = {param: weight.requires_grad for param, weight in weights.items()}

    def hook(param: str) -> Callable[[Tensor], None]:
        def take(weight: Tensor) -> None:
            assert weight.grad is not None
            reduce(param, weight.grad)
            weight.grad = None

        return take

    handles: list[RemovableHandle] = []
    try:
        for param, weight in weights.items():
            weight.requires_grad_(True)
            handles.append(weight.register_post_accumulate_grad_hook(hook(param)))
        yield
    finally:
        for handle in handles:
            handle.remove()
        for param, weight in weights.items():
            weight.requires_grad_(required[param])
