"""The base classes of methods: hyper-parameters that start a search, and a search that ends in a plan."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, PrivateAttr
from torch import Tensor, nn

from tuneprune.budget import Budget, Scores, allocate
from tuneprune.calibration.subject import Subject
from tuneprune.methods.regularise import lora_residue, project
from tuneprune.structure.architecture import Architecture
from tuneprune.structure.edits import Addition, Edit
from tuneprune.structure.masks import Gates
from tuneprune.structure.plan import Plan, Provenance
from tuneprune.structure.space import Masks, PruningSpace

Metrics = dict[str, float]


@dataclass(frozen=True)
class Trained:
    """Parameters that the loop's optimiser trains for a search, in addition to LoRA.

    Their learning rate is `rate` times LoRA's at every step, with the same warm-up and cosine.
    """

    parameters: list[nn.Parameter]
    rate: float = 1.0
    weight_decay: float = 0.0


class Search:
    """One run of one method on one model, as the tuning loop sees it. `Search()` searches nothing: plain tuning.

    Every hook does nothing by default. A method's search calls `attach` first, keeps the hard masks in force in
    `_masks`, makes its final decision in `freeze`, and sets `frozen` then.
    """

    penalty_name: str = "penalty"
    frozen: bool = False
    cut_at: int | None = None
    """Steps after which the model can be cut, because nothing that it removes acts any more; None: only at the end."""
    _phase: str = "tune"
    _masks: Masks = MappingProxyType({})

    def __init__(self, phase: str = "tune") -> None:
        self._phase = phase

    def attach(self, method: "Method", subject: Subject, budget: Budget) -> None:
        """Start from the whole model."""
        self.method, self.subject, self.budget = method, subject, budget
        self._phase, self.device = "control", subject.model.device
        self.gates = Gates(subject.model, subject.space)
        self._masks = subject.space.ones(self.device)

    @property
    def phase(self) -> str:
        """Logged with every step: `control` while the decision can change, then `frozen`."""
        return "frozen" if self.frozen else self._phase

    def parameters(self) -> list[Trained]:
        """The parameters that the loop trains in addition to LoRA: asked once, before the first step.

        The loop averages, clips and checks their gradients together with LoRA's and saves the optimiser's state. Their
        values belong in `state_dict`.
        """
        return []

    @property
    def trains_lora(self) -> bool:
        """Whether this step changes LoRA: while False its weights, and the optimiser's state for them, stay still."""
        return True

    def before_step(self, step: int, /) -> Metrics:  # noqa: ARG002  (a hook's signature)
        """Called before the tuning step `step`, to revise the decision; a search may step an optimiser of its own."""
        return {}

    def context(self) -> AbstractContextManager[None]:
        """The gates of this tuning step: entered for every micro-batch, around its forward and backward.

        Masks built here may carry a graph to the `parameters`.
        """
        return nullcontext()

    def penalty(self) -> Tensor | None:
        """A term that is added to the tuning loss; logged as `penalty_name`."""
        return None

    def after_backward(self) -> None:
        """Called with this step's gradients: finite, averaged over processes and not clipped yet."""

    def after_step(self, learning_rate: float, /) -> None:
        """Called after an optimiser step was taken, for projections."""

    def masks(self) -> Masks | None:
        """The hard masks in force, for logging."""
        return self._masks or None

    def freeze(self) -> None:
        """Make the final decision."""
        raise NotImplementedError

    def plan(self) -> Plan:
        """The final decision, made now if it was not before, with LoRA on removed units set to zero.

        The plan records how much LoRA that was. No hook stays behind.
        """
        if not self.frozen:
            self.freeze()
        residue = lora_residue(self.subject.model, self.subject.space, self._masks)
        project(self.subject.model, self.subject.space, self._masks)
        plan = decide(self._masks, self.subject, self.budget, self.method)
        return Plan(plan.edits, plan.space, {**plan.provenance, "lora_residue": residue})

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue exactly from here."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`."""

    def on_device(self, tensors: Masks) -> dict[str, Tensor]:
        """The tensors on the model's device."""
        return {name: tensor.to(self.device) for name, tensor in tensors.items()}


class Decided(Search):
    """The search of a one-shot method: its plan is decided at the start."""

    cut_at = 0

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self._plan = plan

    def plan(self) -> Plan:
        """The plan that was decided at the start."""
        return self._plan


class Method(BaseModel):
    """Hyper-parameters of one paper's method; also its config schema and its documentation.

    A `one_shot` method decides on the pretrained weights; a run then compresses first and spends its tuning budget on
    the smaller model. It only has to score units, and `ranking` says how the scores become masks. A method that
    `needs_weight_gradients` cannot work on a quantised base; one that `decides_by_lora` needs LoRA on every linear.
    `presets` are named settings; a run file asks for one by its name, like for a method.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ClassVar[str]
    paper: ClassVar[str]
    spaces: ClassVar[tuple[str, ...]]
    one_shot: ClassVar[bool] = False
    ranking: ClassVar[Literal["global", "local"]] = "global"
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
        """Refuse a budget that this method cannot meet on a space that it supports: asked before any training.

        Raises:
            TunePruneError: what is possible instead.
        """

    def check_family(self, architecture: Architecture) -> None:
        """Refuse a model that this method cannot treat, whatever the budget: asked before any training.

        Raises:
            TunePruneError: what is possible instead.
        """

    def check_steps(self, steps: int) -> None:
        """Refuse options that do not fit the number of steps of the run: asked before any training.

        Raises:
            TunePruneError: what is possible instead.
        """

    def adds(self, space: PruningSpace, /) -> frozenset[Addition]:  # noqa: ARG002  (a hook's signature)
        """The parts that its plans add and that a stock class has no place for."""
        return frozenset()

    def constrained(self, budget: Budget) -> Budget:
        """The budget under the constraints that the method sets itself."""
        return budget

    def scores(self, subject: Subject, /) -> Scores:
        """The scores of all units, by group; larger is more worth keeping."""
        raise NotImplementedError

    def begin(self, subject: Subject, budget: Budget) -> Search:
        """Start a search: by default the plan that keeps the units with the best scores."""
        budget = self.constrained(budget)
        self.check(subject.space, budget)
        return self.decided(allocate(self.scores(subject), subject.space, budget, self.ranking), subject, budget)

    def decided(self, masks: Masks, subject: Subject, budget: Budget, extra: Sequence[Edit] = ()) -> Search:
        """The search of a decision that is made: its plan has these hard masks and the `extra` edits."""
        return Decided(decide(masks, subject, budget, self, extra))


def decide(masks: Masks, subject: Subject, budget: Budget, method: Method, extra: Sequence[Edit] = ()) -> Plan:
    """The plan of hard masks and of `extra` edits, which records who decided it."""
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
    """A separate random stream on the CPU, equal on every process."""
    return torch.Generator().manual_seed(seed * 1_000_003 + purpose)
