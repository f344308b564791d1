"""ATP: tune and prune in one run.

A small generator re-decides the masks on calibration data while LoRA tunes on domain data under them. The decision
follows the weights, is then frozen, and LoRA on what was switched off goes to zero, so that it can be cut out exactly.

Paper: https://arxiv.org/abs/2412.14426 (symbols, equations, differences: docs/methods/atp.md).

Changed: Q/K dims are tied across rotary pairs, masks of the `disp` space have full length, the generator always runs in
float32 without dropout, and the final decision is deterministic and meets the budget instead of being the last noisy
sample. `decisions: on_budget`, `prior: taylor` and `compensate` go beyond the paper: see the fields; the preset
`atp-paper` does without them.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from tuneprune.budget import Budget, allocate
from tuneprune.calibration.scores import fisher, prior, standardised_logs
from tuneprune.calibration.subject import Subject
from tuneprune.methods.atp.compensation import Compensation
from tuneprune.methods.atp.presets import ATP_PAPER
from tuneprune.methods.base import Method, Metrics, Search, churn, generator_for
from tuneprune.methods.generator import GeneratorOptimizer, budget_distance, lifted, make_generator, on_budget, sampled
from tuneprune.methods.regularise import Regulariser
from tuneprune.methods.removal import cubic, scheduled_budget
from tuneprune.structure.masks import straight_through


class Atp(Method):
    """Learn the masks with a generator while LoRA tunes, and decide on the way to the budget."""

    name = "atp"
    paper = "https://arxiv.org/abs/2412.14426"
    spaces = ("width", "head_dim", "disp", "residual", "depth")
    presets: ClassVar = {"atp-paper": ATP_PAPER}

    decision: Literal["dynamic", "static"] = Field(
        default="dynamic",
        description="`static` takes all generator steps before tuning starts, on the pretrained weights",
    )
    decisions: Literal["sampled", "on_budget"] = Field(
        default="on_budget",
        description="`sampled` draws masks with Gumbel noise and pulls them to the budget by a loss (the paper);"
        " `on_budget` keeps the best-scored units that fit the budget at every step",
    )
    prior: Literal["none", "magnitude", "taylor"] = Field(
        default="taylor", description="score added to the generator's logits: the start of the decision"
    )
    prior_batches: int = Field(default=16, ge=1, description="calibration batches for the Taylor prior")
    prior_momentum: float = Field(
        default=0.9,
        ge=0,
        le=1,
        description="how slowly the Taylor prior follows the weights: every revision adds the squared gate derivatives"
        " that it computes anyway; 1 keeps the score of the pretrained weights",
    )
    prior_scale: float = Field(default=1.0, ge=0, description="standard deviation of the prior among the logits")
    generator: Literal["transformer", "free"] = Field(
        default="transformer", description="`free`: plain logits (ablation)"
    )
    generator_size: int = Field(default=64, ge=4, description="features of a layer's token")
    generator_blocks: int = Field(default=2, ge=1)
    generator_heads: int = Field(default=4, ge=1)
    generator_learning_rate: float = Field(
        default=1e-3,
        gt=0,
        description="of AdamW; a fifth of it in the last fifth of control",
    )
    generator_clip: float = Field(default=1.0, gt=0, description="largest gradient norm of a generator step")
    control_share: float = Field(
        default=0.5, ge=0, le=1, description="share of the steps in which decisions are revised"
    )
    control_limit: int | None = Field(
        default=30, ge=1, description="largest number of steps in which decisions are revised, however long the run"
    )
    cut: Literal["freeze", "end"] = Field(
        default="freeze",
        description="when the model is cut: `freeze`, and the steps that are left tune the smaller model; or `end` (the"
        " paper), and they tune the masked model while the regulariser drives LoRA on removed units to zero",
    )
    gradual: bool = Field(
        default=True,
        description="`on_budget` decisions shrink from the whole model to the budget over the control phase",
    )
    decision_every: int = Field(default=1, ge=1, description="steps between two revisions")
    temperature: float = Field(default=0.4, gt=0, description="T of the Gumbel-sigmoid")
    base: float = Field(default=3.0, description="b of the Gumbel-sigmoid: sampling starts from the unpruned model")
    budget_weight: float = Field(default=5.0, ge=0, description="alpha: weight of the budget loss (sampled decisions)")
    lora_aware: bool = Field(default=True, description="tuning masks the frozen weights only and leaves LoRA open")
    regulariser: Literal["lasso", "proximal", "linear_decay", "none"] = Field(default="linear_decay")
    lasso_weight: float = Field(default=0.3, ge=0, description="beta in the control phase")
    lasso_weight_frozen: float = Field(default=1000.0, ge=0, description="beta after the decision is frozen")
    proximal_weight: float = Field(default=5e4, ge=0, description="shrinkage per learning rate at the last step")
    decay_share: float = Field(default=0.5, gt=0, le=1, description="share of the frozen phase until LoRA is zero")

    compensate: bool = Field(
        default=True,
        description="at every decision, fold the contribution of removed units into the kept columns of the frozen"
        " linears that read them (least squares on calibration data)",
    )
    compensate_ridge: float = Field(default=0.01, gt=0, description="ridge over the mean second moment of kept inputs")

    @model_validator(mode="after")
    def _heads_divide(self) -> "Atp":
        if self.generator_size % self.generator_heads:
            raise ValueError(
                f"generator_size={self.generator_size} must be a multiple of generator_heads={self.generator_heads}"
            )
        return self

    def begin(self, subject: Subject, budget: Budget) -> Search:
        """Start from the unpruned model (`sampled`) or from the prior's decision (`on_budget`)."""
        return AtpSearch(self, subject, budget)


class AtpSearch(Search):
    """One ATP run: generator, its optimiser, the decision in force."""

    penalty_name = "lasso"

    def __init__(self, options: Atp, subject: Subject, budget: Budget) -> None:
        self.attach(options, subject, budget)
        self.options = options
        self.generator = make_generator(
            options.generator,
            subject.space,
            size=options.generator_size,
            blocks=options.generator_blocks,
            heads=options.generator_heads,
            random=generator_for(subject.seed, purpose=2),
        ).to(self.device)
        self.optimizer = GeneratorOptimizer(self.generator, options.generator_learning_rate, options.generator_clip)
        self.regulariser = Regulariser(
            subject,
            options.regulariser,
            lasso_weights=(options.lasso_weight, options.lasso_weight_frozen),
            proximal_weight=options.proximal_weight,
            decay_share=options.decay_share,
        )
        self.noise = generator_for(subject.seed, purpose=3)
        limit = subject.total_steps if options.control_limit is None else options.control_limit
        self.control_steps = min(limit, round(options.control_share * subject.total_steps))
        if options.cut == "freeze":
            self.cut_at = 0 if options.decision == "static" else self.control_steps
        self.step, self.frozen_at, self.whole = 0, -1, budget.whole(subject.space)
        self.compensation = (
            Compensation(subject, options.compensate_ridge, options.prior_momentum) if options.compensate else None
        )
        self._scores: dict[str, Tensor] | None = None

    def before_step(self, step: int, /) -> Metrics:
        """Revise the decision, or freeze it when the control phase is over."""
        self.step = step
        if self.frozen:
            return {}
        metrics: Metrics = {}
        before = self._masks
        if self.options.decision == "static" or step >= self.control_steps:
            self.freeze()
        elif step % self.options.decision_every == 0:
            metrics, is_good = self._improve(step)
            if is_good:  # otherwise the decision stays as it is, like all other state
                with torch.no_grad():
                    self._masks = self._relaxed(self._logits(), step)[1]
                self._compensate()
        return metrics | {"mask_churn": churn(before, self._masks)}

    def context(self) -> AbstractContextManager[None]:
        """The LoRA-aware tuning forward, or the fully masked one for the ablation."""
        return self.gates(self._masks, "open" if self.options.lora_aware else "masked")

    def penalty(self) -> Tensor | None:
        """The regulariser's term of the loss, for LoRA on removed units."""
        return self.regulariser.penalty(self._masks, frozen=self.frozen)

    def after_step(self, learning_rate: float, /) -> None:
        """Apply the regulariser to LoRA on removed units."""
        self.regulariser.after_step(self._masks, self.step, self.frozen_at, learning_rate)

    def state_dict(self) -> dict[str, Any]:
        """Generator, its optimiser and noise, prior, and the decision in force."""
        return {
            "generator": self.generator.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "noise": self.noise.get_state(),
            "scores": self._scores,
            "masks": self._masks,
            "frozen_at": self.frozen_at,
            "compensation": None if self.compensation is None else self.compensation.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`."""
        self.generator.load_state_dict(state["generator"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.noise.set_state(state["noise"])
        self._scores = state["scores"]
        self._masks = self.on_device(state["masks"])
        self.frozen_at = state["frozen_at"]
        self.frozen = self.frozen_at >= 0
        if self.compensation is not None:
            self.compensation.load_state_dict(state["compensation"], self._masks)

    def _logits(self) -> dict[str, Tensor]:
        """The generator's logits on top of the prior."""
        if self._scores is None:
            self._scores = prior(self.options.prior, self.subject, self.options.prior_batches, self.compensation)
            if self.compensation is not None:
                self.compensation.begin(self.options.prior_batches)
        logits, start = self.generator(), standardised_logs(self._scores, self.options.prior_scale)
        return lifted({name: value + start[name].to(self.device) for name, value in logits.items()}, self.whole)

    def _follow(self, masks: dict[str, Tensor], gradients: Sequence[Tensor]) -> None:
        """Let the Taylor scores follow the weights: an exponential mean of squared gate derivatives per parameter."""
        if self.options.prior == "taylor" and self._scores is not None:
            fresh = fisher(self.subject.space, dict(zip(masks, gradients, strict=True)))
            momentum = self.options.prior_momentum
            self._scores = {name: momentum * old + (1 - momentum) * fresh[name] for name, old in self._scores.items()}

    def _relaxed(self, logits: dict[str, Tensor], index: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Soft masks, and hard ones: sampled, or the best that fit the budget."""
        options = self.options
        if options.decisions == "sampled":
            return sampled(logits, self.noise, base=options.base, temperature=options.temperature)
        hard = self._allocate(logits, (index + 1) / max(1, self.control_steps))
        return on_budget(logits, hard, temperature=options.temperature, by_group=self.budget.is_exact), hard

    def _allocate(self, logits: dict[str, Tensor], done: float = 1.0) -> dict[str, Tensor]:
        """The best-scored units within the budget, or the gradual budget of this point of the control phase."""
        budget = scheduled_budget(self.budget, cubic(done)) if self.options.gradual else self.budget
        return self.on_device(allocate(logits, self.subject.space, budget))

    def freeze(self) -> None:
        """Decide deterministically, exactly on budget; a `static` decision learns from calibration data first."""
        if self.options.decision == "static":
            for index in range(0, self.control_steps, self.options.decision_every):
                self._improve(index)
        with torch.no_grad():
            self._masks = self._allocate(self._logits())
        self.frozen, self.frozen_at = True, self.step
        self._compensate()
        if self.compensation is not None:
            self.compensation.settle()

    def _compensate(self) -> None:
        if self.compensation is not None:
            self.compensation.apply(self._masks)

    def _watching(self) -> AbstractContextManager[None]:
        return nullcontext() if self.compensation is None else self.compensation.watching()

    def _improve(self, index: int) -> tuple[Metrics, bool]:
        """One generator step on calibration data: L_PDG = CE(masked) + alpha * R (docs/methods/atp.md).

        Also returns whether its numbers were finite; otherwise nothing has changed.
        """
        options, space = self.options, self.subject.space
        soft, hard = self._relaxed(self._logits(), index)
        passed_through = {name: straight_through(hard[name], soft[name]) for name in soft}
        is_sampled = options.decisions == "sampled"
        masks = soft if is_sampled else passed_through
        batch, watcher = self.subject.calibration(), self.compensation
        with self._watching(), self.gates(masks):
            loss = self.subject.runtime.loss(batch)
            budget_loss = budget_distance(space, passed_through, self.budget.target(space), self.budget)
            total = loss + options.budget_weight * budget_loss.float() if is_sampled else loss
            gradients = torch.autograd.grad(total, [*self.generator.parameters(), *masks.values()])
        shown = loss.detach().clone()
        self.subject.runtime.average([*gradients, shown])
        own, gates = gradients[: -len(masks)], gradients[-len(masks) :]
        norm = self.optimizer.norm(own)
        seen = [] if watcher is None else watcher.fresh.values()
        is_good = self.subject.runtime.accepts(batch, [shown, norm, *gates, *seen])
        if watcher is not None:
            watcher.close(is_good)
        self.optimizer.step(own, late=index >= 0.8 * self.control_steps, is_good=is_good)
        if is_good and not is_sampled:
            self._follow(masks, gates)
        metrics = {
            "calibration_loss": shown.item(),
            "budget_loss": budget_loss.item(),
            "soft_share": space.parameters_left(soft).item() / space.num_parameters,
            "generator_grad_norm": norm.item(),
            "generator_skipped": float(self.optimizer.skipped),
        }
        return metrics, is_good
