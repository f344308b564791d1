"""CFSP: coarse to fine. First how many channels every layer's MLP keeps, then which ones.

Layers that turn the residual stream by a larger angle keep more channels. Within a layer a channel counts by its
share of the weights around it and by the norm of its activation. Attention stays whole. No gradients; both statistics
come from one forward pass over the calibration data.

Paper: https://arxiv.org/abs/2409.13199. Changed: the angle is a mean over tokens instead of a sum, so that the layers'
shares do not depend on how much calibration data there is; the budget is met exactly. The released code normalises the
weights over the axis that it then averages, so they cancel; `score: literal` does so too, `intended` does not.
"""

import math
from collections.abc import Collection
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from tuneprune.budget import Budget, allocate, fewest_units, fractional_ranks
from tuneprune.calibration.activations import consumer, gather
from tuneprune.calibration.residual_stream import Turns, streams
from tuneprune.calibration.subject import Subject
from tuneprune.errors import UnreachableBudget
from tuneprune.methods.base import Method, Search
from tuneprune.structure.space import Group, PruningSpace
from tuneprune.structure.weights import effective_weight

SHARPNESS = 128 * 2048 / 1e4
"""The paper's 1 / 1e4 is for a sum over 128 x 2048 tokens; this is for a mean over tokens."""
MARGIN = 1.05
"""Divides the deviation of the largest layer where the shares have to shrink, as in the released code."""


class Cfsp(Method):
    """Keep MLP channels by angular block influence and by their share of weights and activations."""

    name = "cfsp"
    paper = "https://arxiv.org/abs/2409.13199"
    spaces = ("width", "head_dim")
    one_shot = True

    score: Literal["intended", "literal"] = Field(
        default="intended",
        description="`intended` takes weights as shares over channels; `literal`, as in the released code, within a"
        " channel, where they cancel",
    )
    sharpness: float = Field(
        default=1.0, ge=0, description="how far the layers' shares follow their influence; with 0 all are the same"
    )
    weight_exponent: float = Field(default=1.0, ge=0, description="exponent of the norm next to the weights")
    activation_exponent: float = Field(default=1.0, ge=0, description="exponent of the activation's norm, a factor")
    batches: int = Field(default=16, ge=1, description="calibration batches")

    def check(self, space: PruningSpace, budget: Budget) -> None:
        """Refuse budgets below the size of the model without MLPs.

        Raises:
            UnreachableBudget: with the smallest `keep` that can be reached.
        """
        fewest = fewest_units(space, budget)
        whole = {group.name: group.size for group in space.groups if not is_mlp(group)}
        low = budget.cost(space, fewest | whole)
        if budget.target(space) < low:
            raise UnreachableBudget(
                f"method `{self.name}` removes MLP channels only, so it cannot reach {budget.name} of"
                f" {budget.counted}: it keeps at least {budget.smallest_keep(space, low):.4f} of this model."
                f" Raise {budget.key}, or choose a method that removes attention too."
            )

    def begin(self, subject: Subject, budget: Budget) -> Search:
        """Decide at once."""
        self.check(subject.space, budget)
        found = subject.scores("cfsp", lambda: self._observe(subject), **self.model_dump(exclude={"sharpness"}))
        whole = budget.whole(subject.space)
        mlps = [group for group in subject.space.groups if is_mlp(group) and group.name not in whole]
        influence = found["influence"][[group.layer for group in mlps]]
        mean = mean_share(subject.space, budget, {group.name for group in mlps})
        keeps = layer_shares(influence, mean, self.sharpness * SHARPNESS) if mlps else influence
        scores = {group.name: torch.ones(group.size) for group in subject.space.groups}  # above every MLP channel
        # A channel at the share q of its layer, best first, scores -q / keep. The best scores of all layers down to -c
        # are then the share c * keep of every layer: the layers' shares stay in proportion, and the budget sets c.
        for group, keep in zip(mlps, keeps.tolist(), strict=True):
            scores[group.name] = -(1 - fractional_ranks(found[group.name])) / keep
        return self.decided(allocate(scores, subject.space, budget), subject, budget)

    def _observe(self, subject: Subject) -> dict[str, Tensor]:
        """The influence of every layer, and the score of every MLP channel within its layer."""
        turns = Turns(subject, lambda cosines: cosines.arccos() / math.pi)
        with streams(subject.model, subject.architecture, turns.see):
            inputs = gather(subject, turns.counted(subject.calibration() for _ in range(self.batches)), turns.sums)
        found = {"influence": turns.mean(subject.runtime)}
        for group in subject.space.groups:
            if is_mlp(group):
                found[group.name] = self._channels(subject, group, inputs[consumer(group).module].norm)
        return found

    def _channels(self, subject: Subject, group: Group, norm: Tensor) -> Float[Tensor, " units"]:
        """The fine score: mean over hidden features i of the weights' shares, times the activation's norm."""
        axis = 0 if self.score == "intended" else 1
        total: Tensor | float = 0.0
        for piece in group.slices:
            if piece.param.endswith(".bias"):
                continue
            weights = effective_weight(subject.model, piece.param).detach().double().cpu()
            magnitudes = piece.segment.by_unit(weights, piece.dim).abs()  # [units, hidden]
            if piece.dim == 1:
                magnitudes = magnitudes * norm.pow(self.weight_exponent).unsqueeze(1)
            total = total + magnitudes / magnitudes.sum(axis, keepdim=True).clamp(min=1e-30)
        assert isinstance(total, Tensor)
        return total.mean(1) * norm.pow(self.activation_exponent)


def is_mlp(group: Group) -> bool:
    """Whether the group holds the channels of an MLP."""
    return group.kind == "mlp_channel"


def mean_share(space: PruningSpace, budget: Budget, mlps: Collection[str]) -> float:
    """The share of channels that meets the budget if all these MLPs keep the same."""
    empty = budget.cost(space, {group.name: 0 if group.name in mlps else group.size for group in space.groups})
    return min(1.0, (budget.target(space) - empty) / max(1, budget.dense(space) - empty))


def layer_shares(influence: Float[Tensor, " layers"], keep: float, sharpness: float) -> Float[Tensor, " layers"]:
    """The share of channels that every layer keeps: `keep` on average, more where the influence is large.

    keep_l = keep u_l / mean(u) with u_l = sigmoid(sharpness (I_l - mean I)). If one would reach 1, all deviations
    shrink by the same factor, which leaves the largest layer just below 1.
    """
    weights = torch.sigmoid(sharpness * (influence - influence.mean()))
    shares = keep * weights / weights.mean()
    if shares.max() >= 1:
        deviations = shares - keep
        shares = keep + deviations * (1 - keep) / (MARGIN * deviations.max()).clamp(min=1e-12)
    return shares
