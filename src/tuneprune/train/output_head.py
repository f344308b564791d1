"""The output head of a causal LM, computed only where it is asked for and without the logits of all tokens at once."""

import math
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from transformers import PreTrainedModel

Rows = Float[Tensor, "rows hidden"]
MAX_LOGITS = 2**24
"""Logits made at once, 64 MiB in float32. The loss and its backward make two or three more tensors of that size."""


class OutputHead:
    """The last linear of a causal LM, and what its family makes of that linear's output."""

    def __init__(self, model: PreTrainedModel) -> None:
        config: Any = model.config
        self.module: Any = model.get_output_embeddings()
        self.divisor: float = getattr(config, "logits_scaling", 1.0)  # Granite
        self.cap: float | None = getattr(config, "final_logit_softcapping", None)  # Gemma

    def logits(self, rows: Rows) -> Float[Tensor, "rows vocabulary"]:
        """Logits in float32 or finer. Hooks of the linear do not run: they did when the rows were taken."""
        logits = self.module.forward(rows)
        if self.divisor != 1:
            logits = logits / self.divisor
        if self.cap is not None:
            logits = torch.tanh(logits / self.cap) * self.cap
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    @contextmanager
    def inputs(self, wanted: Bool[Tensor, "rows length"], see: Callable[[Rows], None]) -> Generator[None, None, None]:
        """Inside, a forward calls `see` with the head's inputs at the `wanted` positions, and gives no logits.

        Other hooks on the head's input, such as gates and statistics, run before, at all positions. The call is made
        within the forward, where weights that are split among processes are together.
        """

        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            see(inputs[0][:, : wanted.shape[1]][wanted])
            return (inputs[0][:, :0], *inputs[1:])

        handle = self.module.register_forward_pre_hook(hook)
        try:
            yield
        finally:
            handle.remove()

    def sum(self, measure: Callable[..., Tensor], rows: Rows, *others: Tensor) -> Float[Tensor, ""]:
        """The sum over rows of `measure(logits, *others)`, itself a sum over the rows that it is given.

        Rows are taken in parts of at most `MAX_LOGITS` logits, and the gradient of each part is computed at once, so
        that its logits are never needed again; recomputing them in backward took 1.5 times as long. Only gradients of
        first order, by what the rows depend on and by the head's own weights.
        """
        weights = [weight for weight in self.module.parameters() if weight.requires_grad]
        differentiates = torch.is_grad_enabled() and (rows.requires_grad or bool(weights))
        parts = max(1, math.ceil(len(rows) * self.module.out_features / MAX_LOGITS))
        total, slopes, sums = rows.new_zeros((), dtype=torch.float32), list[Tensor](), list[Tensor]()
        for part, *targets in zip(*(tensor.detach().chunk(parts) for tensor in (rows, *others)), strict=True):
            part.requires_grad_(differentiates)
            value = measure(self.logits(part), *targets)
            total = total + value.detach()
            if differentiates:
                slope, *more = torch.autograd.grad(value, [part, *weights])
                slopes.append(slope)
                sums = [one.add_(new) for one, new in zip(sums, more, strict=True)] if sums else more
        return _Known.apply(total, [torch.cat(slopes), *sums], rows, *weights) if differentiates else total


class _Known(torch.autograd.Function):
    """A number whose gradients are already known."""

    @staticmethod
    def forward(ctx: FunctionCtx, total: Tensor, gradients: list[Tensor], *_: Tensor) -> Tensor:
        """The number itself."""
        ctx.save_for_backward(*gradients)
        return total.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401  # pyright: ignore[reportIncompatibleMethodOverride]
        """The known gradients, times that of the number."""
        return None, None, *(gradient * slopes[0] for gradient in ctx.saved_tensors)
