"""Gradients of the base model's own weights: of each weight, or reduced to sums per unit during backward."""

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from tuneprune.calibration.batch import Batch
from tuneprune.calibration.finite import none_finite, refuse_none
from tuneprune.calibration.labels import IGNORED
from tuneprune.calibration.subject import Subject
from tuneprune.errors import UnsupportedModel
from tuneprune.structure.space import Group, WeightSlice
from tuneprune.structure.weights import base_weight, effective_weight

MAX_BATCHES = 10
"""Give up after this many bad calibration batches in a row."""


@dataclass(frozen=True)
class Gradients:
    """Mean over samples of the loss's gradient by one weight, and of its square if requested; float32."""

    mean: Tensor
    squares: Tensor | None


def weight_gradients(
    subject: Subject, params: Iterable[str], samples: Iterable[Batch], *, squares: bool
) -> dict[str, Gradients]:
    """Mean gradient of the loss by each of `params` over `samples`, one backward pass each.

    Samples whose numbers are not finite are left out, on all processes alike. With `squares` a sample is a row, whose
    loss is the mean over its own tokens; otherwise it is a batch that the processes share. Memory besides the weights:
    one float32 copy of `params`, two with `squares`, and one weight's gradient at a time.

    Raises:
        UnsupportedModel: a weight has no gradient, because it is stored quantised.
        NonFinite: no sample gave finite numbers.
    """
    weights = {param: base_weight(subject.model, param) for param in params}
    refuse_without_gradients(weights)
    usable = drawn = list(samples)
    sums, is_clean = GradientSums(weights, squares=squares), False
    with gradients_of(subject.model, weights, sums.add):
        while not is_clean:
            usable, is_clean = _sum_up(subject, usable, sums, by_row=squares)
    refuse_none(len(usable), len(drawn))
    subject.runtime.average([*sums.first.values(), *sums.second.values()])
    count = len(usable)
    return {
        name: Gradients(total / count, sums.second[name] / count if squares else None)
        for name, total in sums.first.items()
    }


class GradientSums:
    """Sums of gradients, and of their squares where asked for, by the weight's name."""

    def __init__(self, weights: Mapping[str, nn.Parameter], *, squares: bool) -> None:
        self.first = {name: torch.zeros_like(weight, dtype=torch.float32) for name, weight in weights.items()}
        self.second = {name: torch.zeros_like(total) for name, total in self.first.items()} if squares else {}
        self.norms: list[Tensor] = []
        """Of the gradients of the newest sample."""

    def clear(self) -> None:
        """Start again."""
        for total in (*self.first.values(), *self.second.values()):
            total.zero_()

    def add(self, name: str, gradient: Tensor) -> None:
        """Count one weight's gradient of the newest sample."""
        gradient = gradient.float()
        self.norms.append(gradient.norm())
        self.first[name] += gradient
        if self.second:
            self.second[name] += gradient.square()


@contextmanager
def gradients_of(
    model: nn.Module, weights: Mapping[str, nn.Parameter], take: Callable[[str, Tensor], None]
) -> Generator[None, None, None]:
    """Inside, backward computes the gradients of `weights` alone, hands each to `take` by name, and drops it."""

    def hook(name: str, weight: Tensor) -> None:
        assert weight.grad is not None
        take(name, weight.grad)
        weight.grad = None

    needed = {parameter: parameter.requires_grad for parameter in model.parameters()}
    with ExitStack() as hooks, torch.enable_grad():
        model.requires_grad_(False)
        for parameter, flag in needed.items():
            hooks.callback(parameter.requires_grad_, flag)
        for name, weight in weights.items():
            handle = weight.requires_grad_(True).register_post_accumulate_grad_hook(partial(hook, name))
            hooks.callback(handle.remove)
        yield


def _sum_up(subject: Subject, samples: list[Batch], sums: GradientSums, *, by_row: bool) -> tuple[list[Batch], bool]:
    """Sum gradients over samples; returns the samples to keep, and whether the sums are of exactly these.

    A non-finite loss is noticed before anything is added, a non-finite gradient only afterwards; then the caller has to
    sum up the kept samples again.
    """
    sums.clear()
    runtime, good = subject.runtime, list[Batch]()
    for index, sample in enumerate(samples):
        loss = runtime.loss(sample)
        if by_row:
            loss = loss * _token_factor(subject, sample)
        if not runtime.accepts(sample, [loss]):
            continue
        sums.norms.clear()
        loss.backward()  # pyright: ignore[reportUnknownMemberType]
        if not runtime.accepts(sample, sums.norms):
            return good + samples[index + 1 :], False
        good.append(sample)
    return good, True


def _token_factor(subject: Subject, row: Batch) -> float:
    """Mean tokens of the processes' rows over those of this row: the factor by which their losses differ."""
    own = (row["labels"][:, 1:] != IGNORED).sum().float()
    mean = own.clone()
    subject.runtime.average([mean])
    return (mean.clamp(min=1) / own.clamp(min=1)).item()


def refuse_without_gradients(weights: Mapping[str, nn.Parameter]) -> None:
    """Refuse weights that have no gradient.

    Raises:
        UnsupportedModel: names one, and where to find methods that do not need such gradients.
    """
    for name, weight in weights.items():
        if not weight.is_floating_point():
            kind = str(weight.dtype).removeprefix("torch.")
            raise UnsupportedModel(
                f"The method needs gradients of the base weights, but `{name}` is stored as {kind}, which has none. Use"
                " the unquantised base model, or a method that works on a quantised one (see `tuneprune methods`)."
            )


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

    Every matrix's gradient is reduced and freed as soon as backward has computed it. A batch with non-finite numbers is
    skipped, and the next one is used.

    Raises:
        NonFinite: `MAX_BATCHES` batches in a row were skipped.
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
            w, g = (piece.segment.by_unit(tensor, piece.dim) for tensor in (weight, slope))
            result.inner[group.name] += (w * g).sum(1).double().cpu()
            result.gradient_squares[group.name] += g.pow(2).sum(1).double().cpu()
            result.weight_squares[group.name] += w.pow(2).sum(1).double().cpu()
            result.weight_means[group.name] += w.abs().sum(1).double().cpu()
            entries[group.name] += w.shape[1]

    weights = {param: base_weight(model, param) for param in pieces}
    with gradients_of(model, weights, reduce):
        loss = subject.runtime.loss(batch)
        loss.backward()  # pyright: ignore[reportUnknownMemberType]
    for name, count in entries.items():
        result.weight_means[name] /= max(1, count)
    return result, loss.detach()
