"""What a method is: frozen hyper-parameters that begin a search, and a search that ends in a plan."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, ConfigDict, PrivateAttr
from torch import Tensor, nn

from tuneprune.budget import Budget
from tuneprune.calibration.subject import Subject
from tuneprune.structure.architecture import Architecture
from tuneprune.structure.edits import Addition, Edit
from tuneprune.structure.plan import Plan, Provenance
from tuneprune.structure.space import Masks, PruningSpace

Metrics = dict[str, float]


@dataclass(frozen=True)
class Trained:
    """Parameters that a search wants trained by the loop's own optimiser, beside LoRA.

    `rate` is their learning rate over LoRA's at every step; they follow the same warm-up and cosine.
    """

    parameters: list[nn.Parameter]
    rate: float = 1.0
    weight_decay: float = 0.0


class Search:
    """One run of one method on one model. Every hook defaults to nothing; only `plan` must be given."""

    phase: str = "tune"
    penalty_name: str = "penalty"

    def parameters(self) -> list[Trained]:
        """What the loop trains beside LoRA: asked once, before the first step.

        The loop averages, clips and checks their gradients together with LoRA's and saves the optimiser's state. Their
        values belong into `state_dict`.
        """
        return []

    @property
    def trains_lora(self) -> bool:
        """Whether this step changes LoRA: while False its weights, and the optimiser's state for them, stay still."""
        return True

    def before_step(self, step: int) -> Metrics:  # noqa: ARG002  (a hook's signature)
        """Called before the tuning step `step`, with its own optimiser: where decisions are revised."""
        return {}

    def context(self) -> AbstractContextManager[None]:
        """The gates of this tuning step: entered for every micro-batch, around its forward and backward.

        So masks built here may carry a graph to what `parameters` names.
        """
        return nullcontext()

    def penalty(self) -> Tensor | None:
        """What is added to the tuning loss; logged as `penalty_name`."""
        return None

    def after_backward(self) -> None:
        """Called with this step's gradients, finite, averaged over processes and not clipped yet."""

    def after_step(self, learning_rate: float) -> None:
        """Called after the optimiser step that was taken: projections."""

    def masks(self) -> Masks | None:
        """The hard masks in force, for logging."""
        return None

    def plan(self) -> Plan:
        """The decision. Leaves no hook, and no LoRA on removed units, behind."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on exactly where this was taken."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""


class Decided(Search):
    """A search with nothing left to learn: what every one-shot method returns."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def plan(self) -> Plan:
        """The plan that was decided at the beginning."""
        return self._plan


class Method(BaseModel):
    """Hyper-parameters of one paper's method; also its config schema and its documentation.

    A `one_shot` method decides on the pretrained weights; a run then compresses first and spends its tuning budget on
    the smaller model. One that `needs_weight_gradients` cannot work on a quantised base; one that `decides_by_lora`
    needs LoRA on every linear. `presets` are named settings; a run file asks for one by its name, like for a method.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ClassVar[str]
    paper: ClassVar[str]
    spaces: ClassVar[tuple[str, ...]]
    one_shot: ClassVar[bool] = False
    needs_weight_gradients: ClassVar[bool] = False
    decides_by_lora: ClassVar[bool] = False
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    _preset: str | None = PrivateAttr(default=None)

    @property
    def title(self) -> str:
        """The name it was asked for by: its own, or its preset's."""
        return self._preset or self.name

    @property
    def is_sized_on_disk(self) -> bool:
        """Whether the budget is met by the parameters of the exported model, as a comparison at equal size needs."""
        return True

    @classmethod
    def preset(cls, name: str, settings: Mapping[str, Any]) -> "Method":
        """The preset with some of its options set otherwise."""
        method = cls(**{**cls.presets[name], **settings})
        method._preset = name
        return method

    def check(self, space: PruningSpace, budget: Budget) -> None:
        """Refuse what this method cannot do on a space that it supports: asked before any training.

        Raises:
            TunePruneError: what is possible instead.
        """

    def check_family(self, architecture: Architecture) -> None:
        """Refuse a model that this method cannot treat, whatever the budget: asked before any training.

        Raises:
            TunePruneError: what is possible instead.
        """

    def adds(self, space: PruningSpace) -> frozenset[Addition]:  # noqa: ARG002  (a hook's signature)
        """What its plans add that a stock class has no place for."""
        return frozenset()

    def constrained(self, budget: Budget) -> Budget:
        """The budget under the constraints that the method sets itself."""
        return budget

    def begin(self, subject: Subject, budget: Budget) -> Search:
        """Start a search."""
        raise NotImplementedError


def decide(masks: Masks, subject: Subject, budget: Budget, method: Method, extra: Sequence[Edit] = ()) -> Plan:
    """The plan of hard masks and of `extra` edits, signed with who decided."""
    provenance: Provenance = {
        "method": {"name": method.title, **method.model_dump(mode="json")},
        "budget": budget.model_dump(mode="json"),
        "seed": subject.seed,
        "space": subject.space.name,
        "family": subject.architecture.family,
    }
    plan = Plan.from_masks(masks, subject.space, provenance)
    return replace(plan, edits=(*plan.edits, *extra))


def churn(before: Masks, after: Masks) -> float:
    """Share of all units whose hard mask differs."""
    changed = sum(int((before[name] != after[name]).sum()) for name in after)
    return changed / sum(mask.numel() for mask in after.values())


def generator_for(seed: int, purpose: int) -> torch.Generator:
    """An own random stream on the CPU, equal on every process."""
    return torch.Generator().manual_seed(seed * 1_000_003 + purpose)
