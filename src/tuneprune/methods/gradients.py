"""Gradients of the base model's own weights, for methods whose scores need them."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tuneprune.errors import UnsupportedModel
from tuneprune.methods.base import Batch, Subject
from tuneprune.structure.statistics import IGNORED, real_tokens
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

    Memory beside the weights: one float32 copy of `params`, two with `squares`, and one weight's gradient at a time.

    Raises:
        UnsupportedModel: a weight that has no gradient, because it is stored quantised.
    """
    weights = {param: base_weight(subject.model, param) for param in params}
    refuse_without_gradients(weights)
    sums = {name: torch.zeros_like(weight, dtype=torch.float32) for name, weight in weights.items()}
    second = {name: torch.zeros_like(total) for name, total in sums.items()} if squares else {}
    count = 0

    def take(name: str) -> Callable[[Tensor], None]:
        def hook(weight: Tensor) -> None:
            assert weight.grad is not None
            gradient = weight.grad.float()
            weight.grad = None
            sums[name] += gradient
            if squares:
                second[name] += gradient.square()

        return hook

    needed = {name: parameter.requires_grad for name, parameter in subject.model.named_parameters()}
    subject.model.requires_grad_(False)
    hooks = [w.requires_grad_(True).register_post_accumulate_grad_hook(take(name)) for name, w in weights.items()]
    try:
        with torch.enable_grad():
            for sample in samples:
                subject.runtime.loss(sample).backward()  # pyright: ignore[reportUnknownMemberType]
                count += 1
    finally:
        for hook in hooks:
            hook.remove()
        for name, parameter in subject.model.named_parameters():
            parameter.requires_grad_(needed[name])
    subject.runtime.average([*sums.values(), *second.values()])
    return {name: Gradients(total / count, second[name] / count if squares else None) for name, total in sums.items()}


def refuse_without_gradients(weights: Mapping[str, nn.Parameter]) -> None:
    """Refuse weights that no gradient can be taken of.

    Raises:
        UnsupportedModel: names one, and the methods that need no such gradients.
    """
    from tuneprune.methods import registry  # all methods, of which this is a part

    for name, weight in weights.items():
        if not weight.is_floating_point():
            kind = str(weight.dtype).removeprefix("torch.")
            ways = ", ".join(method.name for method in registry().values() if not method.needs_weight_gradients)
            raise UnsupportedModel(
                f"The method needs gradients of the base weights, but `{name}` is stored as {kind}, which has none. Use"
                f" the unquantised base model, or a method that needs none: {ways}."
            )


def rows_of(batch: Batch) -> list[Batch]:
    """The rows of a batch as batches of one."""
    return [{name: tensor[row : row + 1] for name, tensor in batch.items()} for row in range(len(batch["input_ids"]))]


def with_prompts(batch: Batch) -> Batch:
    """The batch with every real token as a label, those of prompts included; not the first of a document."""
    counts = real_tokens(batch) & (batch["position_ids"] > 0)
    return {**batch, "labels": torch.where(counts, batch["input_ids"], IGNORED)}
