"""Pure scores of units, shared by methods: larger is more worth keeping."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, Protocol

import torch
from torch import Tensor

from tuneprune.calibration.finite import FiniteSums
from tuneprune.calibration.subject import Subject
from tuneprune.structure.masks import Gates
from tuneprune.structure.space import PruningSpace
from tuneprune.structure.weights import group_norms


def magnitude(subject: Subject) -> dict[str, Tensor]:
    """L2 norm of every unit over all weights it couples."""
    with torch.no_grad():
        return {group.name: group_norms(subject.model, group).cpu() for group in subject.space.groups}


class Watcher(Protocol):
    """Gathers its own statistics from the forwards that a score runs anyway."""

    fresh: dict[str, Tensor]
    """The statistics of the newest batch."""

    def watching(self) -> AbstractContextManager[None]:
        """Record statistics of the forward of one batch."""
        ...

    def close(self, is_good: bool) -> None:
        """Count the newest batch's statistics, or drop them."""
        ...


def taylor(subject: Subject, batches: int, watcher: Watcher | None = None) -> dict[str, Tensor]:
    """Mean squared derivative of the calibration loss by each unit's gate, per parameter the unit costs.

    The gate's derivative at 1 is the first-order change of the loss when the unit is removed (Molchanov et al. 2019).
    Its square over batches is the empirical Fisher information of the gate.

    Raises:
        NonFinite: no batch gave finite numbers.
    """
    space, device = subject.space, subject.model.device
    gates = Gates(subject.model, space)
    sums = FiniteSums(subject.runtime.accepts)
    for _ in range(batches):
        batch = subject.calibration()
        masks = {name: mask.requires_grad_() for name, mask in space.ones(device).items()}
        with nullcontext() if watcher is None else watcher.watching(), torch.enable_grad(), gates(masks):
            loss = subject.runtime.loss(batch)
            gradients = torch.autograd.grad(loss, list(masks.values()))
        shown = loss.detach().clone()
        subject.runtime.average([*gradients, shown])
        for name, gradient in zip(masks, gradients, strict=True):
            sums.add(name, gradient.double().cpu().pow(2) / batches)
        is_good = sums.close(batch, shown, *(() if watcher is None else watcher.fresh.values()))
        if watcher is not None:
            watcher.close(is_good)
    share, costs = sums.counted / batches, unit_costs(space)
    return {name: total / share / costs[name] for name, total in sums.result().items()}


def fisher(space: PruningSpace, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Squared gate derivatives of one batch, per parameter the unit costs."""
    costs = unit_costs(space)
    return {name: gradient.detach().double().cpu().pow(2) / costs[name] for name, gradient in gradients.items()}


def prior(
    kind: Literal["none", "magnitude", "taylor"], subject: Subject, batches: int, watcher: Watcher | None = None
) -> dict[str, Tensor]:
    """The one-shot score that decisions start from; ones without a prior."""
    if kind == "none":
        return {group.name: torch.ones(group.size, dtype=torch.double) for group in subject.space.groups}
    return taylor(subject, batches, watcher) if kind == "taylor" else magnitude(subject)


def unit_costs(space: PruningSpace) -> dict[str, float]:
    """Parameters that are removed with the first unit of every group.

    If the space has times, because a budget counts them: nanoseconds per unit, on average over its group.
    """
    if space.latency is not None:
        return {group.name: space.latency.per_unit(group.name) for group in space.groups}
    whole = {group.name: group.size for group in space.groups}
    dense = space.count(whole)
    return {name: float(dense - space.count(whole | {name: size - 1})) for name, size in whole.items()}


def standardised_logs(scores: dict[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Logarithms of scores with mean 0 and standard deviation `scale` over all units; zeros if all are equal."""
    logs = {name: (score.double() + 1e-30).log() for name, score in scores.items()}
    everything = torch.cat(list(logs.values()))
    mean, deviation = everything.mean(), everything.std().clamp(min=1e-12)
    return {name: (scale * (value - mean) / deviation).float() for name, value in logs.items()}
