"""LLM-Pruner: remove coupled structures by the first-order change of the loss.

Weights that can only be removed together form a group: a key/value head with the query heads that read it, or an MLP
channel. A unit's importance is estimated from weights times gradients on a little data, summed over all matrices it
spans. Every pruned layer loses the same share; the first and last layers stay whole.

Paper: https://arxiv.org/abs/2305.11627 (symbols, equations, differences: docs/methods/llm_pruner.md).

Changed: the share removed from each pruned layer is solved so that the whole model meets the budget, whichever layers
are protected; protected layers are shares of the depth, or numbers; the calibration data is the run's own, with the
run's own loss.
"""

from collections.abc import Iterator
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from tuneprune.budget import Budget, allocate, reachable
from tuneprune.calibration.batch import Batch, rows_of, with_prompts
from tuneprune.calibration.gradients import Gradients, weight_gradients
from tuneprune.calibration.subject import Subject
from tuneprune.errors import UnreachableBudget
from tuneprune.methods.base import Method, Search
from tuneprune.methods.protection import Layers, end_layers
from tuneprune.structure.space import PruningSpace
from tuneprune.structure.weights import base_weight

Criterion = Literal["element1", "element2", "vector", "mix"]
Reduction = Literal["sum", "mean", "max", "prod", "first"]


class LlmPruner(Method):
    """Keep the units of largest weight times gradient in the layers between protected ones."""

    name = "llm_pruner"
    paper = "https://arxiv.org/abs/2305.11627"
    spaces = ("width",)
    one_shot = True
    needs_weight_gradients = True

    criterion: Criterion = Field(
        default="element1",
        description="`element1` sums |W g| over single weights, `element2` their diagonal Fisher term, `mix` both;"
        " `vector` takes the absolute value after summing a row",
    )
    reduction: Reduction = Field(
        default="sum",
        description="how a unit's matrices are joined: `first` is q for attention, the gate for MLPs",
    )
    scope: Literal["local", "global"] = Field(
        default="local", description="`local`: every pruned layer loses the same share; `global`: one ranking for all"
    )
    protect_first: Layers = Field(
        default=0.125,
        description="layers that stay whole, counted from the first: a share of all below 1, or a number of layers from"
        " 1 on; the default is 4 of 32. None with budget.per_layer=uniform, where no layer can differ, and with"
        " budget.widths",
    )
    protect_last: Layers = Field(
        default=0.0625, description="the same, counted from the last layer; the default is 2 of 32"
    )
    batches: int = Field(default=16, ge=1, description="calibration batches")
    prompt_loss: bool = Field(
        default=False, description="take the loss on prompts too, as the paper does on plain text (labels = inputs)"
    )

    def check(self, space: PruningSpace, budget: Budget) -> None:
        """Refuse a budget that cannot be met outside the protected layers.

        Raises:
            UnreachableBudget: names the protected layers.
        """
        lowest = reachable(space, self.protecting(space, budget))[0]
        if budget.target(space) < lowest:
            raise UnreachableBudget(
                f"{budget.name} of {budget.counted} cannot be met: with its first and last layers"
                f" whole (method.protect_first={self.protect_first}, method.protect_last={self.protect_last}) the model"
                f" goes down to {budget.smallest_keep(space, lowest):.4f}. Protect fewer layers, or raise {budget.key}."
            )

    def begin(self, subject: Subject, budget: Budget) -> Search:
        """Decide at once."""
        space = subject.space
        self.check(space, budget)
        options = {"criterion": self.criterion, "reduction": self.reduction}
        data = {"batches": self.batches, "prompt_loss": self.prompt_loss}
        scores = subject.scores("llm_pruner", lambda: self.importance(subject), **options, **data)
        masks = allocate(scores, space, self.protecting(space, budget), self.scope)
        return self.decided(masks, subject, budget)

    def protecting(self, space: PruningSpace, budget: Budget) -> Budget:
        """The budget under which the first and last layers stay whole too."""
        if budget.per_layer == "uniform" or budget.is_exact:
            return budget
        layers = end_layers(space, self.protect_first, self.protect_last, part_counts=True)
        return budget.model_copy(update={"protect": [*budget.protect, *layers]})

    def importance(self, subject: Subject) -> dict[str, Float[Tensor, " units"]]:
        """Importance of every unit: `salience` summed over the unit's part of each matrix, the matrices reduced."""
        space = subject.space
        matrices = {
            group.name: [piece for piece in group.slices if len(space.shapes[piece.param]) == 2]
            for group in space.groups
        }
        params = dict.fromkeys(piece.param for pieces in matrices.values() for piece in pieces)
        second_order = self.criterion in ("element2", "mix")
        samples = self._samples(subject, by_row=second_order)
        gradients = weight_gradients(subject, params, samples, squares=second_order)
        scores: dict[str, Tensor] = {}
        for group in space.groups:
            parts: list[Tensor] = []
            for piece in matrices[group.name]:
                weight = base_weight(subject.model, piece.param).detach()
                positions = salience(weight, gradients[piece.param], self.criterion, piece.dim)
                parts.append(piece.segment.by_unit(positions).sum(1))
            scores[group.name] = reduced(torch.stack(parts), self.reduction).cpu()
        return scores

    def _samples(self, subject: Subject, *, by_row: bool) -> Iterator[Batch]:
        """Calibration batches; by row where gradients of single samples are needed."""
        for _ in range(self.batches):
            batch = subject.calibration()
            batch = with_prompts(batch) if self.prompt_loss else batch
            yield from rows_of(batch) if by_row else [batch]


def salience(
    weight: Float[Tensor, "outputs inputs"], gradients: Gradients, criterion: Criterion, dim: int
) -> Float[Tensor, " positions"]:
    """Estimated change of the loss when a row (`dim` 0) or column (`dim` 1) is removed, float64.

    With g the mean gradient and f the mean squared one: vector |sum W g|, element1 sum |W g|, element2 sum W^2 f, mix
    sum |W g - W^2 f / 2|.
    """
    other = 1 - dim
    weight = weight.double()
    first = weight * gradients.mean.double()
    if criterion == "vector":
        return first.sum(other).abs()
    if criterion == "element1":
        return first.abs().sum(other)
    assert gradients.squares is not None
    second = weight.square() * gradients.squares.double()
    return second.sum(other) if criterion == "element2" else (first - second / 2).abs().sum(other)


def reduced(parts: Float[Tensor, "matrices units"], reduction: Reduction) -> Float[Tensor, " units"]:
    """One number per unit from those of its matrices."""
    if reduction == "max":
        return parts.amax(0)
    if reduction == "prod":
        return parts.prod(0)
    if reduction == "first":
        return parts[0]
    return parts.sum(0) if reduction == "sum" else parts.mean(0)
