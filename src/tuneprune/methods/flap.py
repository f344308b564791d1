"""FLAP: remove the units that fluctuate least around their mean, and add the mean as a bias.

A KV group or MLP channel whose activation hardly varies over tokens can be replaced by a constant with little loss.
Fluctuations are standardised per layer and per kind of unit, so that one threshold over the whole model decides how
much every layer and kind loses. No gradients; one forward pass over the calibration data.

Paper: https://arxiv.org/abs/2312.11983. Changed: the unit of attention is a whole KV group (the released code is right
for one query head per key/value head only); the budget counts real parameters, the new biases among them; the attention
score is not squared, which the released code does and the paper does not.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from tuneprune.budget import Budget, allocate, check_reachable, fractional_ranks
from tuneprune.calibration.activations import (
    consumer,
    consumer_statistics,
    consumer_weight,
    per_unit,
    standardised,
    wanda,
)
from tuneprune.calibration.statistics import Statistics
from tuneprune.calibration.subject import Subject
from tuneprune.methods.base import Method, Search
from tuneprune.structure.edits import Addition, Bias
from tuneprune.structure.space import Group, Masks, PruningSpace

FIRST = 1e6
"""Added to the score of attention units that `attention_keep` keeps, subtracted from that of the others."""


class Flap(Method):
    """Keep the units whose activation fluctuates most, and replace the others by their mean."""

    name = "flap"
    paper = "https://arxiv.org/abs/2312.11983"
    spaces = ("width",)
    one_shot = True

    score: Literal["wifv", "ifv", "wifn"] = Field(
        default="wifv",
        description="weighted fluctuation, plain fluctuation, or weights times the norm of the input (Wanda's)",
    )
    structure: Literal["al-am", "al-mm", "ul-mm", "ul-um"] = Field(
        default="al-am",
        description="adaptive or uniform over layers, and adaptive, manual (`attention_keep`) or uniform over modules",
    )
    attention_keep: float = Field(
        default=0.75, gt=0, le=1, description="share of the KV groups to keep, for `al-mm` and `ul-mm`"
    )
    bias: bool = Field(default=True, description="add the mean output of removed units as a bias")
    batches: int = Field(default=16, ge=1, description="calibration batches")

    def check(self, space: PruningSpace, budget: Budget) -> None:
        """Refuse budgets that the smallest model exceeds with its new biases.

        Raises:
            UnreachableBudget: with the range of `keep` that can be reached.
        """
        check_reachable(space, budget, sum(new_biases(space).values()) if self.bias else 0)

    def adds(self, space: PruningSpace, /) -> frozenset[Addition]:
        """Biases of linears that have none in the dense model."""
        return frozenset(("biases",) if self.bias and any(new_biases(space)) else ())

    def begin(self, subject: Subject, budget: Budget) -> Search:
        """Decide at once."""
        found = consumer_statistics(subject, self.batches)
        scores = {group.name: self._score(subject, group, found) for group in subject.space.groups}
        if self.structure == "ul-um":
            scores = {name: fractional_ranks(score) for name, score in scores.items()}
        elif self.structure != "al-am":
            scores = self._manual(subject, scores)
        masks, biases = self._allocate(subject, budget, scores, found)
        return self.decided(masks, subject, budget, biases)

    def _score(self, subject: Subject, group: Group, found: dict[str, Statistics]) -> Tensor:
        """Feature scores, standardised over the layer's features of this kind and averaged over each unit's."""
        features = feature_scores(subject, group, found[consumer(group).module], self.score)
        return per_unit(standardised(features), group).mean(1)

    def _manual(self, subject: Subject, scores: dict[str, Tensor]) -> dict[str, Tensor]:
        """Scores that keep a fixed share of attention: of the whole model's (`al-mm`) or of every layer's (`ul-mm`)."""
        attention = [group.name for group in subject.space.groups if group.kind == "kv_group"]
        lots = [attention] if self.structure == "al-mm" else [[name] for name in attention]
        if self.structure == "ul-mm":
            scores = {name: fractional_ranks(score) for name, score in scores.items()}
        for names in lots:
            places = fractional_ranks(torch.cat([scores[name] for name in names]))
            kept = max(1, round(self.attention_keep * len(places)))
            fixed = places + torch.where(places * len(places) > len(places) - kept - 0.5, FIRST, -FIRST)
            scores |= dict(zip(names, fixed.split([len(scores[name]) for name in names]), strict=True))
        return scores

    def _allocate(
        self, subject: Subject, budget: Budget, scores: dict[str, Tensor], found: dict[str, Statistics]
    ) -> tuple[dict[str, Tensor], list[Bias]]:
        """The decision, with the biases it needs paid for by the budget.

        The first try pays for a bias in every module, the second only for those that the first one uses. If nothing has
        to be removed, nothing is paid.
        """
        space = subject.space
        if not self.bias or budget.target(space) >= budget.dense(space):
            return allocate(scores, space, budget), []
        new = new_biases(space)
        masks = allocate(scores, space, budget, reserved=sum(new.values()))
        needed = sum(new.get(module, 0) for module in touched(subject, masks))
        more = allocate(scores, space, budget, reserved=needed)
        if sum(new.get(module, 0) for module in touched(subject, more)) <= needed:
            masks = more
        return masks, compensating_biases(subject, masks, found)


def new_biases(space: PruningSpace) -> dict[str, int]:
    """The size of the new bias of every linear that reads units and has no bias."""
    modules = [consumer(group).module for group in space.groups]
    return {module: space.shapes[f"{module}.weight"][0] for module in modules if f"{module}.bias" not in space.shapes}


def feature_scores(
    subject: Subject, group: Group, found: Statistics, score: Literal["wifv", "ifv", "wifn"] = "wifv"
) -> Tensor:
    """FLAP's metric of every input feature j: Var(x_j) ||W_:j||^2, Var(x_j), or mean_i |W_ij| ||x_j||."""
    if score == "wifn":
        return wanda(subject, group, found)
    if score == "ifv":
        return found.variance
    return found.variance * consumer_weight(subject, group).pow(2).sum(0)


def touched(subject: Subject, masks: Masks) -> list[str]:
    """The linears that lose some of their inputs."""
    return [consumer(group).module for group in subject.space.groups if not masks[group.name].all()]


def compensating_biases(subject: Subject, masks: Masks, found: dict[str, Statistics]) -> list[Bias]:
    """W_R mu_R of every linear that loses the input features R; it keeps the mean output over the calibration data."""
    edits: list[Bias] = []
    for group in subject.space.groups:
        if masks[group.name].all():
            continue
        gate = consumer(group)
        weight = consumer_weight(subject, group)
        gone = torch.zeros(weight.shape[1], dtype=torch.double)
        start, extent = gate.segment.start, gate.segment.extent
        gone[start : start + extent] = 1 - gate.segment.spread(masks[group.name].double())
        stored = torch.promote_types(subject.model.dtype, torch.float32)
        edits.append(Bias(gate.module, (weight @ (gone * found[gate.module].mean)).to(stored)))
    return edits
