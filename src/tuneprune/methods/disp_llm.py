"""DISP-LLM: every sublayer reads and writes its own part of the residual stream, as a hypernetwork decides.

While all weights stay as they are, a bidirectional GRU over frozen random inputs learns soft masks of all reads, writes
and MLP channels: language loss plus a term that pulls to the budget. The decision is then fixed, on budget and without
noise, and LoRA tunes the remaining model for the rest of the steps.

Paper: https://arxiv.org/abs/2410.11988 (symbols, equations, differences: docs/methods/disp_llm.md).

Changed: the search is a share of the run's steps on its training data, reads are counted per sublayer on the exact
widths of all tensors, a soft MLP mask enters once instead of squared, and LoRA tunes after the search.
"""

from contextlib import AbstractContextManager
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from tuneprune.budget import Budget, allocate
from tuneprune.calibration.subject import Subject
from tuneprune.methods.base import Method, Metrics, Search, Trained, churn, generator_for
from tuneprune.methods.generator import budget_distance, lifted
from tuneprune.structure.masks import gumbel, gumbel_sigmoid, straight_through
from tuneprune.structure.space import Masks, PruningSpace


class DispLlm(Method):
    """Learn by a hypernetwork which dims of the residual stream every sublayer reads and writes."""

    name = "disp_llm"
    paper = "https://arxiv.org/abs/2410.11988"
    spaces = ("disp",)

    search_share: float = Field(
        default=0.5, gt=0, le=1, description="share of the steps in which the hypernetwork learns and LoRA waits"
    )
    budget_weight: float = Field(default=16.0, ge=0, description="lambda: weight of the budget term")
    temperature: float = Field(default=0.4, gt=0, description="T of the Gumbel-sigmoid")
    base: float = Field(default=3.0, description="b of the Gumbel-sigmoid: the search starts from the unpruned model")
    rate: float = Field(default=1.0, gt=0, description="the hypernetwork's learning rate over tune.learning_rate")
    weight_decay: float = Field(default=0.05, ge=0, description="weight decay of the hypernetwork")
    input_size: int = Field(default=32, ge=1, description="features of a group's frozen input")
    hidden_size: int = Field(default=64, ge=1, description="features of the GRU in each direction")

    def begin(self, subject: Subject, budget: Budget) -> Search:
        """Start from the unpruned model."""
        return DispLlmSearch(self, subject, budget)


class Hypernetwork(nn.Module):
    """Logits of all units: a bidirectional GRU over one frozen normal input per group, LayerNorm, GELU and a linear."""

    inputs: Tensor

    def __init__(self, space: PruningSpace, *, input_size: int, hidden_size: int, random: torch.Generator) -> None:
        super().__init__()
        self.names = [group.name for group in space.groups]
        with torch.random.fork_rng(devices=[]):  # modules draw their initial weights from the global stream
            torch.manual_seed(int(torch.randint(2**31, (), generator=random)))
            self.register_buffer("inputs", torch.randn(len(self.names), 1, input_size))
            self.gru = nn.GRU(input_size, hidden_size, bidirectional=True)
            self.norm = nn.LayerNorm(2 * hidden_size)
            self.heads = nn.ModuleList(nn.Linear(2 * hidden_size, group.size, bias=False) for group in space.groups)

    def forward(self) -> dict[str, Tensor]:
        """Logits of every unit, by group name."""
        tokens = nn.functional.gelu(self.norm(self.gru(self.inputs)[0][:, 0]))
        return {name: head(token) for name, head, token in zip(self.names, self.heads, tokens, strict=True)}


class DispLlmSearch(Search):
    """One DISP-LLM run: the hypernetwork and this step's noise, then the fixed decision."""

    penalty_name = "budget_penalty"

    def __init__(self, options: DispLlm, subject: Subject, budget: Budget) -> None:
        self.attach(options, subject, budget)
        self.options = options
        self.hypernetwork = Hypernetwork(
            subject.space,
            input_size=options.input_size,
            hidden_size=options.hidden_size,
            random=generator_for(subject.seed, purpose=2),
        ).to(self.device)
        self.random = generator_for(subject.seed, purpose=3)
        self.cut_at = max(1, round(options.search_share * subject.total_steps))
        self.whole = budget.whole(subject.space)
        self._noise: dict[str, Tensor] = {}

    @property
    def trains_lora(self) -> bool:
        """LoRA waits until the model is cut."""
        return False

    def parameters(self) -> list[Trained]:
        """The hypernetwork."""
        options = self.options
        return [Trained(list(self.hypernetwork.parameters()), rate=options.rate, weight_decay=options.weight_decay)]

    def before_step(self, _: int, /) -> Metrics:
        """Draw this step's noise."""
        before = self._masks
        self._noise = {
            group.name: gumbel((group.size,), self.random).to(self.device) for group in self.subject.space.groups
        }
        with torch.no_grad():
            soft = self._soft()
        self._masks = rounded(soft)
        soft_share = self.subject.space.parameters_left(soft).item() / self.subject.space.num_parameters
        return {"mask_churn": churn(before, self._masks), "soft_share": soft_share}

    def context(self) -> AbstractContextManager[None]:
        """The sampled soft masks, with the graph to the hypernetwork."""
        return self.gates(self._soft())

    def penalty(self) -> Tensor | None:
        """The weighted distance of the rounded masks to the budget, with the gradient passed straight through."""
        soft, space = self._soft(), self.subject.space
        masks = {name: straight_through(hard, soft[name]) for name, hard in rounded(soft).items()}
        distance = budget_distance(space, masks, self.budget.target(space))
        return self.options.budget_weight * distance.float()

    def state_dict(self) -> dict[str, Any]:
        """Hypernetwork, noise, and the decision in force."""
        return {
            "hypernetwork": self.hypernetwork.state_dict(),
            "random": self.random.get_state(),
            "masks": dict(self._masks),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`."""
        self.hypernetwork.load_state_dict(state["hypernetwork"])
        self.random.set_state(state["random"])
        self._masks = self.on_device(state["masks"])

    def _logits(self) -> dict[str, Tensor]:
        """The hypernetwork's logits, with groups that stay whole far above all others."""
        return lifted(self.hypernetwork(), self.whole)

    def _soft(self) -> dict[str, Tensor]:
        """Gumbel-sigmoid of the hypernetwork's logits under this step's noise."""
        base, temperature = self.options.base, self.options.temperature
        return {
            name: gumbel_sigmoid(logits, self._noise[name], base=base, temperature=temperature)
            for name, logits in self._logits().items()
        }

    @torch.no_grad()
    def freeze(self) -> None:
        """Keep the best logits that fit the budget, without noise."""
        self._masks = self.on_device(allocate(self._logits(), self.subject.space, self.budget))
        self.frozen = True


def rounded(soft: Masks) -> dict[str, Tensor]:
    """Hard masks: 1 where a soft one is at least a half, and at the largest entry of every group."""
    return {name: ((mask >= 0.5) | (mask == mask.max())).float() for name, mask in soft.items()}
