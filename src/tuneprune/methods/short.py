"""Short: drop the decoder layers that change the residual stream least.

A layer whose output points in the direction of its input contributes little; block influence is how far it turns the
stream on average. One forward pass over calibration data scores all layers, and the lowest are dropped; or, as a run of
neighbours, the layers across which the stream turns least.

Paper: https://arxiv.org/abs/2403.03853 (block influence); https://arxiv.org/abs/2403.17887 (`contiguous`).

Changed: means are over the calibration data's own tokens without padding, and the budget sets how many layers are
dropped. `contiguous` looks at the last token of every document, the last layer may be dropped as well, and only the
run's own tuning heals the model.
"""

from collections.abc import Collection

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from tuneprune.budget import Budget, Scores, allocate
from tuneprune.calibration.batch import Batch, real_tokens
from tuneprune.calibration.finite import FiniteSums
from tuneprune.calibration.residual_stream import Turns, streams
from tuneprune.calibration.subject import Subject
from tuneprune.errors import ConfigError
from tuneprune.methods.base import Method, Search
from tuneprune.structure.space import PruningSpace


class Short(Method):
    """Drop the layers that change the residual stream least."""

    name = "short"
    paper = "https://arxiv.org/abs/2403.03853"
    spaces = ("depth",)
    one_shot = True

    batches: int = Field(default=16, ge=1, description="calibration batches")
    contiguous: bool = Field(
        default=False,
        description="drop neighbouring layers only: those with the smallest angular distance between the stream before"
        " and behind them",
    )

    def check(self, space: PruningSpace, budget: Budget) -> None:
        """Refuse protected layers that leave no run of neighbours that is long enough.

        Raises:
            ConfigError: says how many layers have to be dropped.
        """
        if not self.contiguous:
            return
        length, stay = dropped_layers(space, budget), protected(space, budget)
        if length and not _runs(len(space.groups), length, stay):
            raise ConfigError(
                f"method.contiguous: {length} neighbouring layers have to be dropped, but every run of them contains"
                " layers of budget.protect. Protect fewer, raise the budget, or set contiguous: false."
            )

    def scores(self, subject: Subject, /) -> Scores:
        """Block influence."""
        return subject.scores("influence", lambda: block_influence(subject, self.batches), batches=self.batches)

    def begin(self, subject: Subject, budget: Budget) -> Search:
        """Decide at once: by block influence, or for a run of neighbours by the angle across it."""
        if not self.contiguous:
            return super().begin(subject, budget)
        space = subject.space
        found = subject.scores("angular", lambda: angular_distances(subject, self.batches), batches=self.batches)
        num_dropped = dropped_layers(space, budget)
        first = flattest(found["distances"], num_dropped, protected(space, budget))
        run = range(first, first + num_dropped)
        scores = {group.name: torch.tensor([float(group.layer not in run)]) for group in space.groups}
        return self.decided(allocate(scores, space, budget), subject, budget)


@torch.no_grad()
def block_influence(subject: Subject, batches: int) -> dict[str, Float[Tensor, " 1"]]:
    """BI = 1 - E[cos(x_in, x_out)] of every layer, over the tokens of the calibration data (2403.03853, equation 1)."""
    turns = Turns(subject, lambda cosines: 1 - cosines)
    with streams(subject.model, subject.architecture, turns.see):
        for batch in turns.counted(subject.calibration() for _ in range(batches)):
            turns.sums.close(batch, subject.runtime.loss(batch))
    influence = turns.mean(subject.runtime)
    return {block.path: influence[index : index + 1] for index, block in enumerate(subject.architecture.blocks)}


@torch.no_grad()
def angular_distances(subject: Subject, batches: int) -> dict[str, Tensor]:
    """`distances[i, j]` = E[arccos(cos(x_i, x_j))] / pi between the streams before layers i and j (2403.17887).

    Over the last token of every document; index `layers` is the stream behind the last layer, before the final norm.
    """
    device = subject.model.device  # where processes can average
    sums = FiniteSums(subject.runtime.accepts)
    chosen = torch.zeros(0, dtype=torch.bool)
    seen: list[Tensor] = []

    def see(index: int, before: Tensor, after: Tensor) -> None:
        here = chosen.to(before.device)
        seen.extend([before[here].double()] * (index == 0) + [after[here].double()])

    with streams(subject.model, subject.architecture, see):
        for _ in range(batches):
            batch = subject.calibration()
            chosen = last_tokens(batch)
            seen.clear()
            loss = subject.runtime.loss(batch)
            directions = nn.functional.normalize(torch.stack(seen), dim=-1)
            cosines = torch.einsum("itd,jtd->ijt", directions, directions).clamp(-1, 1)
            sums.add("distances", torch.arccos(cosines).sum(-1) / torch.pi)
            sums.add("tokens", chosen.sum().to(device, torch.double))
            sums.close(batch, loss)
    totals = sums.result()
    subject.runtime.average(totals.values())
    return {"distances": (totals["distances"] / totals["tokens"]).cpu()}


def flattest(distances: Float[Tensor, "streams streams"], length: int, stay: Collection[int] = ()) -> int:
    """The first of the `length` neighbouring layers across which the stream turns least, without those in `stay`."""
    turns = distances.diagonal(length)
    return min(_runs(len(distances) - 1, length, stay), key=lambda first: float(turns[first]))


def _runs(layers: int, length: int, stay: Collection[int]) -> list[int]:
    """The first layers of all runs of `length` neighbours without those that have to stay."""
    firsts = range(layers - length + 1)
    return [first for first in firsts if not any(first <= layer < first + length for layer in stay)]


def dropped_layers(space: PruningSpace, budget: Budget) -> int:
    """The number of layers that have to be dropped."""
    return sum(not mask.any() for mask in allocate(space.ones(), space, budget).values())


def protected(space: PruningSpace, budget: Budget) -> set[int]:
    """The layers that the budget keeps whole."""
    return {space.by_name[name].layer for name in budget.whole(space)}


def last_tokens(batch: Batch) -> Bool[Tensor, "rows length"]:
    """The last token of every document: the next one starts another document, is padding, or does not exist."""
    real = real_tokens(batch)
    goes_on = real[:, 1:] & (batch["position_ids"][:, 1:] > 0)
    return real & ~nn.functional.pad(goes_on, (0, 1))
