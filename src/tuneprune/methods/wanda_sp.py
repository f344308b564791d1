"""Wanda-sp: keep the units whose weights, times the norm of what they multiply, are largest.

Wanda's score of a weight, |W_ij| ||x_j||, added up over whole units, with the same share removed from every layer.
Layers are treated in order: the input of a layer has passed through the layers before it, already pruned. No gradients.

Paper: https://arxiv.org/abs/2306.11695 (Wanda); the structured form is a baseline of https://arxiv.org/abs/2312.11983.
Changed: the unit of attention is a whole KV group, and the budget counts real parameters.
"""

import torch
from pydantic import Field
from torch import Tensor

from tuneprune.budget import Budget, allocate
from tuneprune.calibration.activations import consumer, consumer_statistics, per_unit, wanda
from tuneprune.calibration.batch import Batch
from tuneprune.calibration.finite import FiniteSums, refuse_none
from tuneprune.calibration.residual_stream import Walk
from tuneprune.calibration.statistics import Statistics, input_statistics
from tuneprune.calibration.subject import Subject
from tuneprune.methods.base import Method, Search
from tuneprune.structure.masks import Gates
from tuneprune.structure.space import Group


class WandaSp(Method):
    """Keep the units of largest weight times activation norm, the same share of every group."""

    name = "wanda_sp"
    paper = "https://arxiv.org/abs/2306.11695"
    spaces = ("width",)
    one_shot = True

    sequential: bool = Field(
        default=True,
        description="score a layer behind the pruned layers before it, not behind the dense ones",
    )
    batches: int = Field(default=16, ge=1, description="calibration batches")

    def begin(self, subject: Subject, budget: Budget) -> Search:
        """Decide at once, or layer by layer."""
        space = subject.space
        if self.sequential:
            # Under the scope `local` the number of units that a group keeps does not depend on the scores.
            even = allocate({group.name: torch.ones(group.size) for group in space.groups}, space, budget, "local")
            kept = {name: int(mask.sum()) for name, mask in even.items()}
            masks = in_order(subject, [subject.calibration() for _ in range(self.batches)], kept)
        else:
            found = consumer_statistics(subject, self.batches)
            scores = {group.name: unit_scores(subject, group, found) for group in space.groups}
            masks = allocate(scores, space, budget, "local")
        return self.decided(masks, subject, budget)


def unit_scores(subject: Subject, group: Group, found: dict[str, Statistics]) -> Tensor:
    """Sum over a unit's features j of the mean over outputs i of |W_ij| ||x_j||."""
    return per_unit(wanda(subject, group, found[consumer(group).module]), group).sum(1)


@torch.no_grad()
def in_order(subject: Subject, batches: list[Batch], kept: dict[str, int]) -> dict[str, Tensor]:
    """The masks that keep the `kept[name]` best units of every group, with each layer scored behind the pruned ones.

    Every layer runs twice, dense for its statistics and pruned for the next one's input.

    Raises:
        NonFinite: the dense model computes finite numbers on none of the batches.
    """
    model, runtime, masks = subject.model, subject.runtime, subject.space.ones()
    gates = Gates(model, subject.space)
    finite = [batch for batch in batches if runtime.accepts(batch, [runtime.loss(batch)])]
    refuse_none(len(finite), len(batches))
    walk = Walk(model, subject.architecture, finite)
    for layer in range(len(subject.architecture.blocks)):
        groups = [group for group in subject.space.groups if group.layer == layer]
        modules, dense = [consumer(group).module for group in groups], walk.run(layer)
        found = input_statistics(
            model, modules, finite, lambda _, run=dense: next(run), runtime.average, sums=FiniteSums(runtime.accepts)
        )
        for group in groups:
            best = torch.argsort(unit_scores(subject, group, found), descending=True, stable=True)
            masks[group.name] = torch.zeros(group.size).index_fill(0, best[: kept[group.name]], 1.0)
        with gates({name: mask.to(model.device) for name, mask in masks.items()}):
            walk.streams = list(walk.run(layer))
    return masks
