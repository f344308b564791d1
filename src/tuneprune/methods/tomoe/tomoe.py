"""ToMoE: a dense model becomes a mixture of experts whose tokens compute only a part of every MLP.

A small recurrent network makes every layer's experts, overlapping sets of MLP channels, and a router per layer picks
one for each token; both learn by distillation from the unpruned network, while LoRA tunes it under them. Channels that
no expert has are removed, and LoRA continues under the decided experts.

Paper: https://arxiv.org/abs/2501.15316 (symbols, equations, differences: docs/methods/tomoe.md).

Changed: by default the budget counts the parameters on disk, as for every other method, instead of those that one token
uses; V/O dims are chosen per layer instead of per token; decisions start from a Taylor score; the final one is
deterministic and meets the budget; and LoRA tunes, where the paper leaves the weights as they are.
"""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from tuneprune.budget import Budget, allocate, check_reachable, units_per_step
from tuneprune.calibration.batch import Batch
from tuneprune.calibration.scores import prior, standardised_logs
from tuneprune.calibration.subject import Subject
from tuneprune.errors import UnsupportedModel
from tuneprune.methods.base import Method, Metrics, Search, generator_for
from tuneprune.methods.generator import GeneratorOptimizer, lifted
from tuneprune.methods.tomoe.experts import (
    ExpertGenerator,
    SampledChoice,
    best_units,
    check_routable,
    divergence,
    expert_width,
    mean_tokens,
    on_cpu,
    sampled_experts,
    shared_out,
    size_terms,
    union,
)
from tuneprune.structure.architecture import Architecture
from tuneprune.structure.edits import Addition, Edit, Keep, Route
from tuneprune.structure.masks import routed, token_mask
from tuneprune.structure.plan import Plan, Provenance
from tuneprune.structure.space import PruningSpace


class Tomoe(Method):
    """Turn every MLP into experts of overlapping channels, with a router that picks one for each token."""

    name = "tomoe"
    paper = "https://arxiv.org/abs/2501.15316"
    spaces = ("head_dim",)

    experts: int = Field(default=8, ge=2, description="experts of every MLP; each token computes one of them")
    budget_counts: Literal["total", "active"] = Field(
        default="total",
        description="the parameters that count for the budget: all that are kept, or (the paper) those that one token"
        " uses, with the widest expert of every layer; then the model on disk is larger than the budget",
    )
    expert_share: float = Field(
        default=0.5, gt=0, le=1, description="share of a layer's kept MLP channels in one expert (`total`)"
    )
    search_share: float = Field(
        default=0.5, ge=0, le=1, description="share of the steps in which experts and routers are learned"
    )
    tune_during_search: bool = Field(
        default=True, description="LoRA tunes under the sampled experts too; otherwise it waits for the decision"
    )
    distil: Literal["kl", "ce"] = Field(
        default="kl", description="`kl` follows the unpruned model's predictions, `ce` the calibration text"
    )
    distil_weight: float = Field(default=2.0, gt=0, description="weight of that loss")
    budget_weight: float = Field(default=16.0, ge=0, description="lambda: weight of the budget term")
    union_weight: float = Field(
        default=3.0,
        ge=0,
        description="weight of the other size: the share of channels in any expert, drawn to 1 (`active`), or the"
        " widest expert's share of those, drawn to `expert_share` (`total`)",
    )
    balance_weight: float = Field(default=1.0, ge=0, description="weight of the routers' load balance")
    prior: Literal["none", "magnitude", "taylor"] = Field(
        default="taylor", description="score added to every expert's logits: the start of the decision"
    )
    prior_batches: int = Field(default=16, ge=1, description="calibration batches for the Taylor prior")
    prior_scale: float = Field(default=1.0, ge=0, description="standard deviation of the prior among the logits")
    generator_size: int = Field(default=64, ge=1, description="hidden features of the GRU in each direction")
    learning_rate: float = Field(default=1e-3, gt=0, description="learning rate of experts and routers (AdamW)")
    weight_decay: float = Field(default=0.05, ge=0)
    clip: float = Field(default=1.0, gt=0, description="largest gradient norm of a search step")
    temperature: float = Field(default=0.4, gt=0, description="T of Gumbel-sigmoid and Gumbel-softmax")
    base: float = Field(default=3.0, description="b of the Gumbel-sigmoid: sampling starts from the unpruned model")

    @property
    def is_sized_on_disk(self) -> bool:
        """Not if the budget counts the parameters that one token uses."""
        return self.budget_counts == "total"

    def adds(self, _: PruningSpace, /) -> frozenset[Addition]:
        """A router for every MLP."""
        return frozenset(("routers",))

    def check_family(self, architecture: Architecture) -> None:
        """Refuse MLPs without a gate, by UnsupportedModel."""
        if any(block.mlp.gate is None for block in architecture.blocks):
            raise UnsupportedModel(
                f"{architecture.family}: its MLPs have no gate, and method `tomoe` routes gated MLPs only. Use `atp` on"
                " space `width`."
            )

    def check(self, space: PruningSpace, budget: Budget) -> None:
        """Refuse budgets that leave no MLP to route, or that the routers exceed, by TunePruneError."""
        check_routable(space, budget, self.experts)

    def begin(self, subject: Subject, budget: Budget) -> Search:
        """Start from experts with almost all channels."""
        self.check_family(subject.architecture)
        return TomoeSearch(self, subject, budget)


class TomoeSearch(Search):
    """One ToMoE run: expert generator, its optimiser, the decision in force."""

    def __init__(self, options: Tomoe, subject: Subject, budget: Budget) -> None:
        self.attach(options, subject, budget)
        self.options, space = options, subject.space
        self.routed = [group.name for group in space.groups if group.kind == "mlp_channel"]
        self.added = len(self.routed) * options.experts * (hidden := subject.architecture.hidden)
        check_reachable(space, budget, self.added)
        self.generator = ExpertGenerator(
            space,
            self.routed,
            num_experts=options.experts,
            hidden=hidden,
            size=options.generator_size,
            random=generator_for(subject.seed, purpose=2),
        ).to(self.device)
        self.optimizer = GeneratorOptimizer(
            self.generator, options.learning_rate, options.clip, weight_decay=options.weight_decay
        )
        self.noise = generator_for(subject.seed, purpose=3)
        self.search_steps = round(options.search_share * subject.total_steps)
        self.step, self.frozen_at, self.whole = 0, -1, budget.whole(space)
        self._scores: dict[str, Tensor] | None = None
        self._experts = {name: self._masks[name].bool().expand(options.experts, -1) for name in self.routed}

    @property
    def trains_lora(self) -> bool:
        """Only once the experts are decided, unless asked otherwise."""
        return self.frozen or self.options.tune_during_search

    def before_step(self, step: int, /) -> Metrics:
        """Improve experts and routers, or freeze them when their share of the steps is over."""
        self.step = step
        if self.frozen:
            return {}
        if step < self.search_steps:
            return self._improve(self.subject.calibration())
        self.freeze()
        return {}

    @contextmanager
    def context(self) -> Generator[None, None, None]:
        """The simulated compressed model: every token under the best expert of its router."""
        routes = {edit.group: token_mask(edit) for edit in self._routes()}
        with self.gates(self._masks), routed(self.subject.model, self.subject.space, routes):
            yield

    def plan(self) -> Plan:
        """The final decision with its routers; it records how many parameters one token uses."""
        kept = super().plan()
        routes = {route.group: on_cpu(route) for route in self._routes()}
        edits: list[Edit] = [routes.get(edit.group, edit) if isinstance(edit, Keep) else edit for edit in kept.edits]
        provenance: Provenance = {
            **kept.provenance,
            "budget_counts": self.options.budget_counts,
            "active_parameters": self._active(),
        }
        return Plan(tuple(edits), kept.space, provenance)

    def state_dict(self) -> dict[str, Any]:
        """Generator and routers, their optimiser and noise, prior, and the decision in force."""
        return {
            "generator": self.generator.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "noise": self.noise.get_state(),
            "scores": self._scores,
            "masks": self._masks,
            "experts": self._experts,
            "frozen_at": self.frozen_at,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`."""
        self.generator.load_state_dict(state["generator"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.noise.set_state(state["noise"])
        self._scores = state["scores"]
        self._masks, self._experts = self.on_device(state["masks"]), self.on_device(state["experts"])
        self.frozen_at = state["frozen_at"]
        self.frozen = self.frozen_at >= 0

    def _routes(self) -> list[Route]:
        """The routes of the decision in force."""
        routers = {name: {"weight": self.generator.router(name).detach().clone()} for name in self._experts}
        return [Route(name, experts, routers[name]) for name, experts in self._experts.items()]

    def _active(self) -> int:
        """Parameters that one token uses at most, routers included."""
        widths = {name: int(mask.sum()) for name, mask in self._masks.items()}
        widths |= {name: int(experts.sum(1).max()) for name, experts in self._experts.items()}
        return self.subject.space.count(widths) + self.added

    def _logits(self) -> dict[str, Tensor]:
        """The generator's logits on top of the prior."""
        if self._scores is None:
            self._scores = prior(self.options.prior, self.subject, self.options.prior_batches)
        logits, start = self.generator(), standardised_logs(self._scores, self.options.prior_scale)
        return lifted({name: value + start[name].to(self.device) for name, value in logits.items()}, self.whole)

    def _improve(self, batch: Batch) -> Metrics:
        """One step on calibration data: distillation, budget, union and load balance (docs/methods/tomoe.md)."""
        options, model, space = self.options, self.subject.model, self.subject.space
        masks, hard = sampled_experts(self._logits(), self.noise, base=options.base, temperature=options.temperature)
        choices = {
            name: SampledChoice(self.generator.router(name), masks[name], self.noise, options.temperature)
            for name in self.routed
        }
        static = {name: mask for name, mask in masks.items() if name not in choices}
        runtime = self.subject.runtime
        with torch.no_grad():
            teacher = runtime.logits(batch) if options.distil == "kl" else None
        with self.gates(space.ones(self.device) | static), routed(model, space, choices):
            if teacher is None:
                loss = runtime.loss(batch)
            else:
                loss = divergence(teacher, runtime.logits(batch)) / mean_tokens(runtime, batch)
            budget_term, union_term = size_terms(
                space,
                masks,
                [name for name in self.routed if name not in self.whole],
                target=self.budget.target(space) - self.added,
                expert_share=options.expert_share if options.budget_counts == "total" else None,
            )
            balances = [choice.balance for choice in choices.values() if choice.balance is not None]
            balance = torch.stack(balances).mean()
            total = options.distil_weight * loss + options.balance_weight * balance
            total = total + options.budget_weight * budget_term + options.union_weight * union_term
            gradients = torch.autograd.grad(total, list(self.generator.parameters()))
        shown = torch.stack([loss.detach(), balance.detach()]).float()
        runtime.average([*gradients, shown])
        norm = self.optimizer.norm(gradients)
        if self.optimizer.step(gradients, late=False, is_good=runtime.accepts(batch, [shown, norm])):
            self._experts = {name: hard[name].bool() for name in self.routed}
            self._masks = {name: union(mask) if name in self._experts else mask for name, mask in hard.items()}
        return {
            "calibration_loss": shown[0].item(),
            "balance_loss": shown[1].item(),
            "budget_loss": budget_term.item(),
            "union_loss": union_term.item(),
            "active_share": self._active() / space.num_parameters,
            "generator_grad_norm": norm.item(),
            "generator_skipped": float(self.optimizer.skipped),
        }

    @torch.no_grad()
    def freeze(self) -> None:
        """Decide deterministically, exactly on budget: the units that stay, and every expert's share of them."""
        space, logits = self.subject.space, {name: value.cpu() for name, value in self._logits().items()}
        counts_total = self.options.budget_counts == "total"
        scores = {name: value.amax(0) if name in self._experts else value for name, value in logits.items()}
        if not counts_total:  # a unit stands for the mean over experts of their units of the same rank
            scores |= {name: logits[name].sort(1, descending=True).values.mean(0) for name in self.routed}
        masks = allocate(scores, space, self.budget, reserved=self.added)
        for name in self.routed:
            kept = masks[name].bool()
            if counts_total:
                share = 1.0 if name in self.whole else self.options.expert_share
                step = units_per_step(space.by_name[name], self.budget.multiple_of)
                own = expert_width(int(kept.sum()), share, self.options.experts, step)
                experts = shared_out(logits[name], kept, own)
            else:
                experts = best_units(logits[name], int(kept.sum()))
            self._experts[name] = experts.to(self.device)
            masks[name] = experts.any(0).float()
        self._masks = self.on_device(masks)
        self.frozen, self.frozen_at = True, self.step
