"""ATP's search: the generator, its optimiser, and the decision in force."""

from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tuneprune.budget import Budget, allocate
from tuneprune.calibration.batch import Batch
from tuneprune.calibration.scores import fisher, prior, standardised_logs
from tuneprune.calibration.subject import Subject
from tuneprune.methods.atp.compensation import Compensation
from tuneprune.methods.base import Metrics, Search, churn, generator_for
from tuneprune.methods.generator import GeneratorOptimizer, budget_distance, lifted, make_generator, on_budget, sampled
from tuneprune.methods.regularise import Regulariser
from tuneprune.methods.removal import cubic, scheduled_budget
from tuneprune.structure.masks import straight_through

if TYPE_CHECKING:
    from tuneprune.methods.atp.atp import Atp


class AtpSearch(Search):
    """One ATP run: generator, its optimiser, the decision in force."""

    penalty_name = "lasso"

    def __init__(self, options: "Atp", subject: Subject, budget: Budget) -> None:
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
        self._soft: dict[str, Tensor] = {}
        self._leaves: dict[str, Tensor] = {}
        self._learnt: Metrics = {}

    def before_step(self, step: int, /) -> Metrics:
        """Revise the decision, or freeze it when the control phase is over."""
        self.step = step
        if self.frozen:
            return {}
        metrics: Metrics = {}
        before = self._masks
        self._leaves = {}
        if self.options.decision == "static" or step >= self.control_steps:
            self.freeze()
        elif step % self.options.decision_every == 0:
            if self.options.gate_gradients == "training":
                metrics = self._learnt
                self._soft, self._masks = self._relaxed(self._logits(), step)
                self._leaves = {name: mask.clone().requires_grad_() for name, mask in self._masks.items()}
                self._compensate()
            else:
                metrics, is_good = self._improve(step)
                if is_good:  # otherwise the decision stays as it is, like all other state
                    with torch.no_grad():
                        self._masks = self._relaxed(self._logits(), step)[1]
                    self._compensate()
        return metrics | {"mask_churn": churn(before, self._masks)}

    @contextmanager
    def context(self) -> Generator[None, None, None]:
        """The LoRA-aware tuning forward, or the fully masked one for the ablation."""
        watching = self._watching() if self._leaves else nullcontext()
        with watching, self.gates(self._leaves or self._masks, "open" if self.options.lora_aware else "masked"):
            yield

    def after_backward(self) -> None:
        """Let the generator learn from this step's gate gradients, straight through the hard masks."""
        if not self._leaves:
            return
        gates = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in self._leaves.values()]
        self.subject.runtime.average(gates)
        own = torch.autograd.grad(list(self._soft.values()), list(self.generator.parameters()), gates)
        self._learnt, _ = self._learn({}, own, dict(zip(self._leaves, gates, strict=True)), self.step)

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
            "learnt": self._learnt,
            "frozen_at": self.frozen_at,
            "compensation": None if self.compensation is None else self.compensation.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`."""
        self.generator.load_state_dict(state["generator"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.noise.set_state(state["noise"])
        self._scores = state["scores"]
        self._masks, self._learnt = self.on_device(state["masks"]), state["learnt"]
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

    def _follow(self, gradients: dict[str, Tensor]) -> None:
        """Let the Taylor scores follow the weights: an exponential mean of squared gate derivatives per parameter."""
        if self.options.prior == "taylor" and self._scores is not None:
            fresh = fisher(self.subject.space, gradients)
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
        batch = self.subject.calibration()
        with self._watching(), self.gates(masks):
            loss = self.subject.runtime.loss(batch)
            budget_loss = budget_distance(space, passed_through, self.budget.target(space), self.budget)
            total = loss + options.budget_weight * budget_loss.float() if is_sampled else loss
            gradients = torch.autograd.grad(total, [*self.generator.parameters(), *masks.values()])
        shown = loss.detach().clone()
        self.subject.runtime.average([*gradients, shown])
        own, gates = gradients[: -len(masks)], dict(zip(masks, gradients[-len(masks) :], strict=True))
        learnt, is_good = self._learn(batch, own, gates, index, shown)
        metrics = {
            "calibration_loss": shown.item(),
            "budget_loss": budget_loss.item(),
            "soft_share": space.parameters_left(soft).item() / space.num_parameters,
        }
        return metrics | learnt, is_good

    def _learn(
        self, batch: Batch, own: Sequence[Tensor], gates: dict[str, Tensor], index: int, *others: Tensor
    ) -> tuple[Metrics, bool]:
        """The generator's step, and the statistics that follow the weights, if all numbers are finite.

        Args:
            batch: what the gradients are from, to name its records if they are not finite.
            own: gradients of the generator's parameters.
            gates: gradients of the masks.
            others: further results of the batch that have to be finite.
        """
        norm, watcher = self.optimizer.norm(own), self.compensation
        seen = [] if watcher is None else watcher.fresh.values()
        is_good = self.subject.runtime.accepts(batch, [*others, norm, *gates.values(), *seen])
        if watcher is not None:
            watcher.close(is_good)
        self.optimizer.step(own, late=index >= 0.8 * self.control_steps, is_good=is_good)
        if is_good and self.options.decisions == "on_budget":
            self._follow(gates)
        return {"generator_grad_norm": norm.item(), "generator_skipped": float(self.optimizer.skipped)}, is_good
