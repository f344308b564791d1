"""Least-squares compensation: the contribution of a linear's removed inputs moves to the inputs that it keeps.

SPA/OBSPA (arXiv 2403.18955) on whole units, again at every decision. With S the kept and R the removed inputs of a
linear, W its pretrained weight and H the second moments of its inputs:

    W_S <- W_S + W_R H_RS (H_SS + ridge · mean(diag H_SS) · I)⁻¹
"""

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from tuneprune.calibration.finite import all_finite, refuse_none
from tuneprune.calibration.subject import Subject
from tuneprune.compress.compensate import gated_inputs, ridge_solution
from tuneprune.errors import NonFinite
from tuneprune.structure.space import Masks
from tuneprune.structure.weights import base_weight

Tensors = dict[str, Tensor]
"""By module its weight, or the moments of its input: the mean over tokens of x xᵀ, float32."""


def ridge_update(weight: Tensor, moment: Tensor, kept: Tensor, ridge: float) -> Tensor:
    """The change of the kept columns of `weight`: the equation above, solved for the smaller of W_R H_RS and H_RS."""
    stay, gone = (part.nonzero().squeeze(1) for part in (kept, ~kept))
    among, cross = (moment.index_select(0, rows).index_select(1, stay).double() for rows in (stay, gone))
    lost = weight.index_select(1, gone).double()
    if len(gone) < len(weight):
        return lost @ ridge_solution(among, cross, ridge)
    return ridge_solution(among, lost @ cross, ridge)


class Compensation:
    """Keeps the frozen weights of all linears with gated inputs optimal for the decision in force.

    Moments are gathered from forwards that a search runs anyway (`watching`, then `close`) and follow the weights by
    an exponential mean; a batch that is not accepted adds nothing. Memory, until the decision is settled: the
    pretrained weight of every such linear, and its moments twice while watching, inputs x inputs each.
    """

    def __init__(self, subject: Subject, ridge: float, momentum: float) -> None:
        self.subject, self.ridge, self.momentum = subject, ridge, momentum
        self.modules = list(gated_inputs(subject.space, subject.space.ones()))
        first = {reader: site.readers[0] for site in subject.architecture.sites() for reader in site.readers}
        self._source = {name: first.get(name, name) for name in self.modules}
        self.moments: Tensors = {}
        self.fresh: Tensors = {}
        self._first: Tensors = {}
        self._count = 0
        self._is_settled = False
        self._dense = {name: base_weight(subject.model, f"{name}.weight").detach().clone() for name in self.modules}

    @contextmanager
    def watching(self) -> Generator[None, None, None]:
        """Record the inputs in the forward of one batch; enter it before gates, whose hooks then run later."""
        self.fresh = {}

        def record(name: str, _: Module, inputs: tuple[Any, ...]) -> None:
            if name in self.fresh:
                return  # checkpointing runs forwards twice
            rows = inputs[0].detach().flatten(0, -2).float()
            with torch.autocast(rows.device.type, enabled=False):  # sums of bf16 would not be positive definite
                self.fresh[name] = rows.T @ rows / len(rows)

        with ExitStack() as hooks:
            for name in dict.fromkeys(self._source.values()):
                module = self.subject.model.get_submodule(name)
                hooks.callback(module.register_forward_pre_hook(partial(record, name)).remove)
            yield
        for moment in self.fresh.values():
            self.subject.runtime.average([moment])  # one at a time: a transfer copies what it sends

    def close(self, is_good: bool) -> None:
        """Count the moments of the newest batch, or drop them: the first ones form a mean, which later ones move."""
        fresh, self.fresh = self.fresh, {}
        if not is_good:
            return
        for name, moment in fresh.items():
            if self.moments:
                self.moments[name].lerp_(moment, 1 - self.momentum)
            else:
                self._first[name] = self._first[name].add_(moment) if name in self._first else moment
        self._count += 1

    def begin(self, batches: int) -> None:
        """Take the mean of the moments seen so far; if there are none, gather some first."""
        if not self._first:
            self._gather(batches)
        self.moments = {name: total.div_(self._count) for name, total in self._first.items()}
        self._first = {}

    @torch.no_grad()
    def _gather(self, batches: int) -> None:
        """Gather moments of the model as it is; none if no input is gated (`depth`)."""
        for _ in range(batches if self.modules else 0):
            batch = self.subject.calibration()
            with self.watching():
                loss = self.subject.runtime.loss(batch)
            self.close(self.subject.runtime.accepts(batch, [loss, *self.fresh.values()]))
        refuse_none(self._count, batches if self.modules else 0)

    @torch.no_grad()
    def apply(self, masks: Masks) -> None:
        """Set the frozen weights for these masks."""
        flags = gated_inputs(self.subject.space, masks)
        together: dict[tuple[str, bytes], list[str]] = {}  # linears with the same input and mask share a solution
        for name, kept in flags.items():
            together.setdefault((self._source[name], kept.numpy().tobytes()), []).append(name)
        for (source, _), names in together.items():
            dense = [self._dense[name] for name in names]
            weight, kept = torch.cat(dense), flags[names[0]].to(dense[0].device)
            if kept.any() and not kept.all() and source in self.moments:
                weight[:, kept] += ridge_update(weight, self.moments[source], kept, self.ridge).to(weight)
                if not all_finite([weight]):
                    raise NonFinite(
                        f"Compensating `{names[0]}` for its removed inputs gave numbers that are not finite. Raise"
                        " method.compensate_ridge, or set method.compensate=false."
                    )
            for name, part in zip(names, weight.split([len(one) for one in dense]), strict=True):
                base_weight(self.subject.model, f"{name}.weight").copy_(part)

    def settle(self) -> None:
        """Keep the weights as they are for good, and free everything that another decision would need."""
        self.moments, self._dense, self._is_settled = {}, {}, True

    def state_dict(self) -> dict[str, Tensors]:
        """The moments, since the model brings its pretrained weights; once settled, the weights instead."""
        if not self._is_settled:
            return {"moments": self.moments}
        model = self.subject.model
        return {"weights": {name: base_weight(model, f"{name}.weight").detach() for name in self.modules}}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensors], masks: Masks) -> None:
        """Continue from a `state_dict`, under the decision that was in force."""
        model = self.subject.model
        if "weights" in state:
            for name, weight in state["weights"].items():
                base_weight(model, f"{name}.weight").copy_(weight)
            self.settle()
        elif state["moments"]:
            self.moments = {name: moment.to(model.device) for name, moment in state["moments"].items()}
            self.apply(masks)
