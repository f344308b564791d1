"""PAT: while LoRA tunes, learn which dims of the residual stream stay, and move the content of the others into them.

A small linear operator behind the embedding and behind every sublayer mixes dims before one mask, shared by the whole
model, removes some. Both are trained with the model and folded into its weights at the end.

Paper: https://arxiv.org/abs/2408.14721 (symbols, equations, differences: docs/methods/pat.md).

Changed: the operators' regulariser acts on all of them (the official code keeps three), their output scale is folded in
as well (its merge script drops it), the budget counts parameters, and when the mask freezes it is exactly on budget. A
tied embedding has the mask but no operator, which would change the head too.
"""

import math
from collections.abc import Generator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from tuneprune.budget import Budget, allocate
from tuneprune.calibration.subject import Subject
from tuneprune.methods.base import Method, Metrics, Search, Trained, decide, generator_for
from tuneprune.methods.regularise import project
from tuneprune.structure.masks import straight_through
from tuneprune.structure.plan import Plan
from tuneprune.structure.space import Masks
from tuneprune.structure.weights import base_module, lora_factors


class Pat(Method):
    """Train one mask of the residual stream, and operators that make up for it, together with LoRA."""

    name = "pat"
    paper = "https://arxiv.org/abs/2408.14721"
    spaces = ("residual",)

    rank_share: float = Field(default=0.05, gt=0, le=1, description="an operator's rank as a share of the hidden size")
    milestone_share: float = Field(
        default=1 / 3, gt=0, le=1, description="share of the steps after which the mask would be a step function"
    )
    freeze_share: float = Field(
        default=0.8, gt=0, le=1, description="share of the milestone after which the mask is decided and stays"
    )
    mask_rate: float = Field(
        default=10.0, gt=0, description="learning rate of the mask's logits relative to LoRA's: they have to travel 0.5"
    )
    active_weight: float = Field(default=10.0, ge=0, description="weight of the distance to the budget")
    margin_weight: float = Field(default=1.0, ge=0, description="weight of pulling logits to 0.5 or -0.5")
    identity_weight: float = Field(default=1.0, ge=0, description="weight of the operators' orthogonality")

    def begin(self, subject: Subject, budget: Budget) -> Search:
        """Start with operators that change nothing and a mask of ones."""
        return PatSearch(self, subject, budget)


class Operator(nn.Module):
    """x -> scale * (x + up down x): the identity at the start (a hybrid sparsification module without its mask)."""

    def __init__(self, size: int, rank: int, random: torch.Generator) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(rank, size))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5), generator=random)
        self.up = nn.Parameter(torch.zeros(size, rank))
        self.scale = nn.Parameter(torch.ones(size))

    def forward(self, states: Float[Tensor, "*tokens hidden"]) -> Tensor:
        """The mixed and scaled states, in their own precision or float32, whichever is finer."""
        precision = torch.promote_types(states.dtype, torch.float32)
        down, up, scale = (factor.to(precision) for factor in (self.down, self.up, self.scale))
        states = states.to(precision)
        return scale * (states + states @ down.T @ up.T)

    def identity_loss(self) -> Tensor:
        """Distance of the rows of `down` from orthonormal, and of the columns of `up` from orthogonal.

        The columns can have any length: they start at zero, so the paper's unit length is impossible.
        """
        identity = torch.eye(len(self.down), device=self.down.device)
        products = self.up.T @ self.up
        return (self.down @ self.down.T - identity).pow(2).mean() + (products * (1 - identity)).pow(2).mean()


class PatSearch(Search):
    """One PAT run: operators, the logits of the mask, and the decision once it is made."""

    penalty_name = "pat"

    def __init__(self, options: Pat, subject: Subject, budget: Budget) -> None:
        self.attach(options, subject, budget)
        self.options = options
        (self.group,) = subject.space.groups
        self.milestone = max(1, round(options.milestone_share * subject.total_steps))
        self.freeze_at = math.ceil(options.freeze_share * self.milestone)
        random = generator_for(subject.seed, purpose=5)
        present = dict(subject.model.named_modules()).keys()
        self.sites = [gate.module for gate in self.group.gates if gate.module in present]
        rank = max(1, round(options.rank_share * self.group.size))
        architecture = subject.architecture
        self.operators = {
            site: Operator(self.group.size, rank, random).to(self.device)
            for site in self.sites
            if not (architecture.tied and site == architecture.embed)
        }
        self.logits = nn.Parameter(torch.zeros(self.group.size, device=self.device))
        self.step = 0
        self._decision: Tensor | None = None
        self._plan: Plan | None = None

    def parameters(self) -> list[Trained]:
        """The mask's logits, and the operators."""
        operators = [parameter for operator in self.operators.values() for parameter in operator.parameters()]
        return [Trained([self.logits], rate=self.options.mask_rate), Trained(operators)]

    def before_step(self, step: int, /) -> Metrics:
        """Decide at the end of the mask's share of the steps."""
        self.step = step
        if not self.frozen and step >= self.freeze_at:
            self.freeze()
        return {"active_dims": float((self._hard() > 0).sum())}

    def context(self) -> AbstractContextManager[None]:
        """Operator and mask behind the embedding and behind every linear that writes to the stream."""
        return self._modules(self.mask())

    def mask(self) -> Float[Tensor, " hidden"]:
        """M = sigmoid(tau w) + bias: all ones at step 0, sharper with every step; the decision once it is made."""
        if self._decision is not None:
            return self._decision
        temperature, offset = schedule(self.step, self.milestone)
        return torch.sigmoid(temperature * self.logits) + offset

    def penalty(self) -> Tensor:
        """Orthogonality of all operators; until the decision, distance to the budget and the margin as well."""
        total = torch.zeros((), device=self.logits.device)
        if self.operators:
            losses = [operator.identity_loss() for operator in self.operators.values()]
            total = total + self.options.identity_weight * torch.stack(losses).mean()
        if self._decision is not None:
            return total
        hard = self._hard()
        masks = {self.group.name: straight_through(hard, torch.sigmoid(self.logits))}
        target = self.budget.target(self.subject.space)
        distance = (self.subject.space.parameters_left(masks) - target).abs().float() / target
        return total + self.options.active_weight * distance + self.options.margin_weight * margin(self.logits)

    def masks(self) -> Masks:
        """The dims that the mask keeps more than half of."""
        return {self.group.name: (self.mask().detach() > 0.5).float()}

    def plan(self) -> Plan:
        """The decision, exactly on budget, with the operators folded into the weights that write to the stream."""
        if self._plan is None:
            if not self.frozen:
                self.freeze()
            masks = {self.group.name: self._hard()}
            self._fold()
            project(self.subject.model, self.subject.space, masks)
            self._plan = decide(masks, self.subject, self.budget, self.options)
        return self._plan

    def state_dict(self) -> dict[str, Any]:
        """Operators, logits and the decision."""
        operators = {site: operator.state_dict() for site, operator in self.operators.items()}
        return {"operators": operators, "logits": self.logits.detach(), "decision": self._decision}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`."""
        for site, operator in self.operators.items():
            operator.load_state_dict(state["operators"][site])
        decision = state["decision"]
        with torch.no_grad():
            self.logits.copy_(state["logits"])
        self._decision = None if decision is None else decision.to(self.device)
        self.frozen = decision is not None

    def _hard(self) -> Tensor:
        """The indicator of positive logits, or the decision."""
        return (self.logits.detach() > 0).float() if self._decision is None else self._decision

    def freeze(self) -> None:
        """Keep the largest logits that fit the budget."""
        masks = allocate({self.group.name: self.logits}, self.subject.space, self.budget)
        self._decision = masks[self.group.name].to(self.device)
        self.frozen = True

    @contextmanager
    def _modules(self, mask: Tensor) -> Generator[None, None, None]:
        """Install operators and mask as hooks until the context ends."""
        with ExitStack() as hooks:
            for site in self.sites:
                operator = self.operators.get(site)

                def change(
                    _: nn.Module, __: object, output: Tensor, operator: Operator | None = operator
                ) -> Float[Tensor, "*tokens hidden"]:
                    with torch.autocast(output.device.type, enabled=False):
                        mixed = output if operator is None else operator(output)
                        return (mask * mixed).to(output.dtype)

                hooks.callback(self.subject.model.get_submodule(site).register_forward_hook(change).remove)
            yield

    @torch.no_grad()
    def _fold(self) -> None:
        """W <- D W, b <- D b, LoRA's up <- D up; rows of the embedding are mixed as its output is."""
        for site, operator in self.operators.items():
            module: Any = base_module(self.subject.model, site)
            if isinstance(module, nn.Embedding):
                module.weight.copy_(operator(module.weight))
                continue
            factors = lora_factors(self.subject.model, site)
            columns = [module.weight] if factors is None else [module.weight, factors.up]
            for matrix in columns:
                matrix.copy_(operator(matrix.T).T)
            if module.bias is not None:
                module.bias.copy_(operator(module.bias))


def schedule(step: int, milestone: int) -> tuple[float, float]:
    """Temperature tau = 1 / (1 - ln s / ln s0) and bias max(0.5 - s / s0, 0) at step s of the milestone s0.

    At step 0 the temperature is 0, its limit.
    """
    if step >= milestone:
        return math.inf, 0.0
    temperature = 1 / (1 - math.log(step) / math.log(milestone)) if step else 0.0
    return temperature, max(0.5 - step / milestone, 0.0)


def margin(logits: Float[Tensor, " hidden"]) -> Tensor:
    """Mean squared distance of positive logits to 0.5, plus that of the others to -0.5."""
    positive = logits > 0
    sides = [(logits[positive] - 0.5).pow(2), (logits[~positive] + 0.5).pow(2)]
    return torch.stack([side.mean() for side in sides if len(side)]).sum()
