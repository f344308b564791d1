"""Gradients of the base model's own weights, for methods whose scores need them."""

from collections.abc import Callable, Iterable, Mapping
from copy import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tuneprune.calibration.finite import Batch, refuse_none
from tuneprune.calibration.statistics import IGNORED, real_tokens
from tuneprune.calibration.subject import Subject
from tuneprune.errors import UnsupportedModel
from tuneprune.structure.weights import base_weight


@dataclass(frozen=True)
class Gradients:
    """Mean over samples of the loss's gradient by one weight, and of its square where asked for; float32."""

    mean: Tensor
    squares: Tensor | None


def weight_gradients(
    subject: Subject, params: Iterable[str], samples: Iterable[Batch], *, squares: bool
) -> dict[str, Gradients]:
    """Mean gradient of the loss by each of `params` over `samples`, one backward pass each.

    Samples whose numbers are not finite are left out, on all processes alike. With `squares` a sample is a row, whose
    loss is the mean over its own tokens; else a batch that the processes share. Memory beside the weights: one float32
    copy of `params`, two with `squares`, and one weight's gradient at a time.

    Raises:
        UnsupportedModel: a weight that has no gradient, because it is stored quantised.
        NonFinite: no sample gave finite numbers.
    """
    weights = {param: base_weight(subject.model, param) for param in params}
    refuse_without_gradients(weights)
    usable = drawn = list(samples)
    sums = GradientSums(weights, squares=squares)
    needed = {name: parameter.requires_grad for name, parameter in subject.model.named_parameters()}
    subject.model.requires_grad_(False)
    hooks = [w.requires_grad_(True).register_post_accumulate_grad_hook(sums.take(name)) for name, w in weights.items()]
    try:
        with torch.enable_grad():
            is_clean = False
            while not is_clean:
                usable, is_clean = _sum_up(subject, usable, sums, by_row=squares)
    finally:
        for hook in hooks:
            hook.remove()
        for name, parameter in subject.model.named_parameters():
            parameter.requires_grad_(needed[name])
    refuse_none(len(usable), len(drawn))
    subject.runtime.average([*sums.first.values(), *sums.second.values()])
    count = len(usable)
    return {
        name: Gradients(total / count, sums.second[name] / count if squares else None)
        for name, total in sums.first.items()
    }


class GradientSums:
    """Sums of gradients and of their squares, by hooks that drop each gradient as soon as it is counted."""

    def __init__(self, weights: Mapping[str, nn.Parameter], *, squares: bool) -> None:
        self.first = {name: torch.zeros_like(weight, dtype=torch.float32) for name, weight in weights.items()}
        self.second = {name: torch.zeros_like(total) for name, total in self.first.items()} if squares else {}
        self.norms: list[Tensor] = []
        """Of the gradients of the newest sample."""

    def clear(self) -> None:
        """Start anew."""
        for total in (*self.first.values(), *self.second.values()):
            total.zero_()

    def take(self, name: str) -> Callable[[Tensor], None]:
        """A hook of the named weight."""

        def hook(weight: Tensor) -> None:
            assert weight.grad is not None
            gradient = weight.grad.float()
            weight.grad = None
            self.norms.append(gradient.norm())
            self.first[name] += gradient
            if self.second:
                self.second[name] += gradient.square()

        return hook


def _sum_up(subject: Subject, samples: list[Batch], sums: GradientSums, *, by_row: bool) -> tuple[list[Batch], bool]:
    """Sum gradients over samples; returns those that may be good, and whether the sums are of them alone.

    A loss that is not finite is seen before anything is added; a gradient only afterwards, and then all is to be
    summed up again without that sample.
    """
    sums.clear()
    runtime, good = subject.runtime, list[Batch]()
    for index, sample in enumerate(samples):
        loss = runtime.loss(sample)
        if by_row:
            loss = loss * _tokens_beside(subject, sample)
        if not runtime.accepts(sample, [loss]):
            continue
        sums.norms.clear()
        loss.backward()  # pyright: ignore[reportUnknownMemberType]
        if not runtime.accepts(sample, sums.norms):
            return good + samples[index + 1 :], False
        good.append(sample)
    return good, True


def _tokens_beside(subject: Subject, row: Batch) -> float:
    """Mean tokens of the rows that the processes have at one place over those of this one, by which losses differ."""
    own = (row["labels"][:, 1:] != IGNORED).sum().float()
    mean = own.clone()
    subject.runtime.average([mean])
    return (mean.clamp(min=1) / own.clamp(min=1)).item()


def refuse_without_gradients(weights: Mapping[str, nn.Parameter]) -> None:
    """Refuse weights that no gradient can be taken of.

    Raises:
        UnsupportedModel: names one, and where to look for methods that need no such gradients.
    """
    for name, weight in weights.items():
        if not weight.is_floating_point():
            kind = str(weight.dtype).removeprefix("torch.")
            raise UnsupportedModel(
                f"The method needs gradients of the base weights, but `{name}` is stored as {kind}, which has none. Use"
                " the unquantised base model, or a method that works on a quantised one (see `tuneprune methods`)."
            )


def rows_of(batch: Batch) -> list[Batch]:
    """The rows of a batch as batches of one."""
    rows = range(len(batch["input_ids"]))
    return [derived(batch, **{name: tensor[row : row + 1] for name, tensor in batch.items()}) for row in rows]


def with_prompts(batch: Batch) -> Batch:
    """The batch with every real token as a label, those of prompts included; not the first of a document."""
    counts = real_tokens(batch) & (batch["position_ids"] > 0)
    return derived(batch, labels=torch.where(counts, batch["input_ids"], IGNORED))


def derived(batch: Batch, **tensors: Tensor) -> Batch:
    """The batch with other tensors; it still knows which records it was made of, where it did."""
    made = dict(batch) if not isinstance(batch, dict) else copy(batch)
    made.update(tensors)
    return made
