"""SliceGPT: rotate the residual stream onto its principal axes, then cut the axes of least energy.

An RMSNorm without weight commutes with a rotation, so a decoder computes the same in any basis; in that of a PCA of
calibration data, most dims carry little. Decides at once, without gradients.

Paper: https://arxiv.org/abs/2401.15024 (symbols, equations, differences: docs/methods/slicegpt.md).

Changed: by default the whole model has one basis (`variant: stock`), so that the result loads in the stock class and
needs no matrices on skip connections; `variant: skip` is the paper's method, with a basis for every norm. The width is
the largest one that meets the budget with everything counted, and there is no final random rotation.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from tuneprune.budget import Budget, Reserved, allocate, check_reachable
from tuneprune.calibration.residual_stream import (
    Moments,
    Walk,
    epsilon_of,
    finite_batches,
    pooled_moments,
    principal_axes,
)
from tuneprune.calibration.subject import Subject
from tuneprune.errors import UnsupportedModel
from tuneprune.methods.base import Decided, Method, Search, decide
from tuneprune.structure.architecture import Architecture
from tuneprune.structure.edits import EVERYWHERE, Addition, Rotate
from tuneprune.structure.plan import Plan, added_by_rotating
from tuneprune.structure.space import PruningSpace


class SliceGpt(Method):
    """Rotate the residual stream to its principal axes and drop the trailing ones."""

    name = "slicegpt"
    paper = "https://arxiv.org/abs/2401.15024"
    spaces = ("residual",)
    one_shot = True

    variant: Literal["stock", "skip"] = Field(
        default="stock",
        description="`stock` has one basis for all layers and stays a stock model; `skip` has one for every norm (the"
        " paper) and a matrix on every skip connection",
    )
    batches: int = Field(default=16, ge=1, description="calibration batches")
    damping: float = Field(
        default=0.01, ge=0, description="share of the mean second moment that is added to every second moment"
    )

    def check(self, space: PruningSpace, budget: Budget) -> None:
        """Refuse budgets that the narrowest stream exceeds with its matrices on skips and its own head.

        Raises:
            UnreachableBudget: with the range of `keep` that can be reached.
        """
        check_reachable(space, budget, self._reserved(space))

    def check_family(self, architecture: Architecture) -> None:
        """Refuse families whose norms do not commute with a rotation.

        Raises:
            UnsupportedModel: says which norms it supports.
        """
        if not architecture.is_rotatable:
            raise UnsupportedModel(
                f"{architecture.family}: method `slicegpt` needs RMSNorms before attention and MLP only,"
                " because others do not commute with a rotation. Use another method on space `residual`, such as"
                " `magnitude`."
            )

    def adds(self, _: PruningSpace, /) -> frozenset[Addition]:
        """A basis for every norm needs matrices on the skip connections."""
        return frozenset(("skip matrices",) if self.variant == "skip" else ())

    def begin(self, subject: Subject, budget: Budget) -> Search:
        """Decide at once."""
        self.check_family(subject.architecture)
        self.check(subject.space, budget)
        if self.variant == "stock":
            return Decided(self._stock(subject, budget))
        return Decided(self._skip(subject, budget))

    def _stock(self, subject: Subject, budget: Budget) -> Plan:
        """One basis: the principal axes of the stream at all places together, in one pass."""
        (group,) = subject.space.groups
        found = subject.scores("stream_moments", lambda: {"moments": self._moments(subject)}, batches=self.batches)
        energies, basis = principal_axes(found["moments"], self.damping)
        masks = allocate({group.name: energies}, subject.space, budget, reserved=self._reserved(subject.space))
        return self._plan({EVERYWHERE: basis}, masks, subject, budget)

    def _moments(self, subject: Subject) -> Tensor:
        arguments = (subject.model, subject.architecture, self.batches, subject.calibration, subject.runtime)
        return pooled_moments(*arguments).cpu()

    @torch.no_grad()
    def _skip(self, subject: Subject, budget: Budget) -> Plan:
        """A basis for every norm, each from the stream behind layers that are already cut.

        Layer by layer; every layer runs twice, because the basis before its MLP depends on its cut attention.
        """
        (group,) = subject.space.groups
        model, architecture = subject.model, subject.architecture
        sites = list(architecture.sites())
        order = {group.name: -torch.arange(group.size, dtype=torch.double)}
        masks = allocate(order, subject.space, budget, reserved=self._reserved(subject.space))
        width = int(masks[group.name].sum())
        epsilon = epsilon_of(model.get_submodule(sites[0].own_norm))
        bases: list[Tensor] = []

        def principal(moments: Moments) -> Tensor:
            """Add the next basis; returns the projection on its kept axes."""
            subject.runtime.average([moments.total])
            bases.append(principal_axes(moments.total, self.damping)[1])
            kept = bases[-1][:, :width]
            return kept @ kept.T

        drawn = [subject.calibration() for _ in range(self.batches)]
        walk = Walk(model, architecture, finite_batches(model, drawn, subject.runtime))
        for index in range(len(architecture.blocks)):
            before, inside = (Moments(architecture.hidden, model.device, epsilon) for _ in range(2))
            walk.look(before)
            walk.project(principal(before))
            walk.look_inside(index, inside)
            walk.go_on(index, principal(inside))
        final = Moments(architecture.hidden, model.device, epsilon)
        walk.look(final)
        principal(final)
        found = {site.own_norm: basis for site, basis in zip(sites, bases, strict=True)}
        return self._plan(found, masks, subject, budget)

    def _reserved(self, space: PruningSpace) -> Reserved:
        """Parameters that the bases add to a stream of the kept width; every skip connection has a gate."""
        gates = [gate.module for group in space.groups for gate in group.gates]
        skips = sum(module.endswith("_skip") for module in gates) if self.variant == "skip" else 0
        return lambda kept: added_by_rotating(space, skips + 1, min(kept.values()))

    def _plan(self, bases: Mapping[str, Tensor], masks: dict[str, Tensor], subject: Subject, budget: Budget) -> Plan:
        """Rotate, then keep the leading axes."""
        plan = decide(masks, subject, budget, self)
        precision = torch.promote_types(subject.model.dtype, torch.float32)
        rotations = tuple(Rotate(at, basis.cpu().to(precision)) for at, basis in bases.items())
        return Plan((*rotations, *plan.edits), plan.space, plan.provenance)
