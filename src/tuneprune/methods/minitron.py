"""Minitron: keep the heads and MLP channels with the largest activations, the same number in every layer.

The importance of a unit is the size of its activation on a small calibration set: averaged over each sequence, then
joined over sequences by an L2 norm. Units are ranked within their layer, and every layer keeps equally many, so that
most families' stock class can load the result. No gradients; one forward pass over the calibration data.

Paper: https://arxiv.org/abs/2407.14679. Changed: the unit of attention is a whole KV group; heads and channels lose the
same share, where the paper searches over candidate shapes; the MLP's activation is read behind the gate. Left out:
embedding channels, layers, and distillation from the dense model.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from tuneprune.budget import Budget, Scores, reachable
from tuneprune.calibration.activations import consumer
from tuneprune.calibration.batch import real_tokens
from tuneprune.calibration.finite import FiniteSums
from tuneprune.calibration.statistics import reading
from tuneprune.calibration.subject import Subject
from tuneprune.methods.base import Method
from tuneprune.structure.space import PruningSpace

Join = Literal["mean", "l2"]


class Minitron(Method):
    """Keep the units of largest activation, equally many in every layer."""

    name = "minitron"
    paper = "https://arxiv.org/abs/2407.14679"
    spaces = ("width",)
    one_shot = True
    ranking = "local"

    over_sequence: Join = Field(default="mean", description="how sizes are joined over the tokens of a row")
    over_batch: Join = Field(default="l2", description="how rows are joined")
    uniform: bool = Field(
        default=True,
        description="equal widths in all layers, instead of what `budget.per_layer` asks for",
    )
    batches: int = Field(default=16, ge=1, description="calibration batches")

    def check(self, space: PruningSpace, budget: Budget) -> None:
        """Refuse models whose layers differ, if all are to become equal.

        Raises:
            ConfigError: the layers have different widths.
        """
        reachable(space, self.constrained(budget))

    def scores(self, subject: Subject, /) -> Scores:
        """The importance of every unit."""
        options = self.model_dump(exclude={"uniform"})
        return subject.scores("minitron", lambda: importance(subject, **options), **options)

    def constrained(self, budget: Budget) -> Budget:
        """Equal widths in all layers, if `uniform` asks for them."""
        return budget.model_copy(update={"per_layer": "uniform"}) if self.uniform else budget


@torch.no_grad()
def importance(subject: Subject, batches: int, over_sequence: Join, over_batch: Join) -> dict[str, Tensor]:
    """The joined size of every unit's activation: per token |x| of a channel, ||x||_2 over a KV group's features.

    A sequence is a row of the calibration data, which may hold several short documents; padding does not count.
    """
    groups = {consumer(group).module: group for group in subject.space.groups}
    device = subject.model.device  # where processes can average
    sums = FiniteSums(subject.runtime.accepts)
    counted = torch.zeros(0)

    def see(module: str, states: Tensor) -> None:
        group = groups[module]
        squares = states.double().pow(2)
        segment = consumer(group).segment
        parts = squares.narrow(-1, segment.start, segment.extent).unflatten(-1, segment.view)
        axes = [axis for axis in range(2, parts.ndim) if axis != 2 + segment.axis]
        sizes = (parts.sum(axes) if axes else parts).sqrt()  # [rows, length, units]
        real = counted.to(sizes).unsqueeze(-1)
        rows = joined(sizes * real, real.sum(1).clamp(min=1), over_sequence)
        sums.add(group.name, (rows if over_batch == "mean" else rows.pow(2)).sum(0))

    with reading(subject.model, groups, see):
        for _ in range(batches):
            batch = subject.calibration()
            counted = real_tokens(batch)
            sums.add("rows", counted.any(1).sum().to(device, torch.double))
            sums.close(batch, subject.runtime.loss(batch))
    totals = sums.result()
    subject.runtime.average(totals.values())
    num_rows = totals.pop("rows").clamp(min=1)
    found = {group.name: totals[group.name] for group in groups.values()}
    return {name: (total / num_rows if over_batch == "mean" else total.sqrt()).cpu() for name, total in found.items()}


def joined(sizes: Tensor, tokens: Tensor, how: Join) -> Tensor:
    """Sizes [rows, length, units] joined over the `tokens` of each row that count; the others are zero."""
    return sizes.sum(1) / tokens if how == "mean" else sizes.pow(2).sum(1).sqrt()
