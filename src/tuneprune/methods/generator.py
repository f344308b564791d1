"""The pruning-decision generator: a small transformer over the layers whose output scores every unit of the model."""

from collections.abc import Collection, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tuneprune.budget import Budget
from tuneprune.calibration.finite import stays_in_range
from tuneprune.structure.masks import gumbel, gumbel_sigmoid
from tuneprune.structure.space import Masks, PruningSpace

KEY = "/"  # parameter names cannot contain dots, as group names do


class TransformerGenerator(nn.Module):
    """Logits of all units from one token per layer (ATP's generator of the paper era, docs/methods/atp.md).

    Frozen orthogonal inputs, a transformer encoder that attends across layers, LayerNorm, and one
    bias-free head per group. Differs from the official code: no dropout (a second source of noise besides Gumbel), and
    heads start small, so that all logits start near zero.
    """

    inputs: Tensor

    def __init__(self, space: PruningSpace, *, size: int, blocks: int, heads: int, random: torch.Generator) -> None:
        super().__init__()
        self.layers = {group.name: group.layer for group in space.groups}
        num_layers = max(self.layers.values()) + 1
        with torch.random.fork_rng(devices=[]):  # modules draw their initial weights from the global stream
            torch.manual_seed(int(torch.randint(2**31, (), generator=random)))
            rows = max(num_layers, size)
            basis = nn.init.orthogonal_(torch.empty(rows, size))[:num_layers]
            self.register_buffer("inputs", basis)
            layer = nn.TransformerEncoderLayer(size, heads, 4 * size, dropout=0.0, batch_first=True)
            self.encoder = nn.TransformerEncoder(layer, blocks, enable_nested_tensor=False)
            self.norm = nn.LayerNorm(size)
            heads_by_key = {
                group.name.replace(".", KEY): nn.Linear(size, group.size, bias=False) for group in space.groups
            }
            for head in heads_by_key.values():
                nn.init.normal_(head.weight, std=0.01 / size**0.5)
            self.heads = nn.ModuleDict(heads_by_key)

    def forward(self) -> dict[str, Tensor]:
        """Logits of every unit, by group name."""
        tokens = self.norm(self.encoder(self.inputs[None]))[0]
        return {name: self.heads[name.replace(".", KEY)](tokens[layer]) for name, layer in self.layers.items()}


class FreeGenerator(nn.Module):
    """Plain logits, one trainable number per unit: the ablation of the generator."""

    def __init__(self, space: PruningSpace) -> None:
        super().__init__()
        self.logits = nn.ParameterDict(
            {group.name.replace(".", KEY): nn.Parameter(torch.zeros(group.size)) for group in space.groups}
        )

    def forward(self) -> dict[str, Tensor]:
        """Logits of every unit, by group name."""
        return {name.replace(KEY, "."): logits + 0.0 for name, logits in self.logits.items()}


LIFT = 1e4
"""Far above all logits, so that Gumbel noise and temperature cannot matter."""


def lifted(logits: Masks, whole: Collection[str]) -> dict[str, Tensor]:
    """Logits whose groups in `whole` stay whole, whatever is sampled."""
    return {name: value + LIFT if name in whole else value for name, value in logits.items()}


def make_generator(
    kind: Literal["transformer", "free"],
    space: PruningSpace,
    *,
    size: int,
    blocks: int,
    heads: int,
    random: torch.Generator,
) -> nn.Module:
    """The generator of a kind; the sizes are those of the transformer."""
    if kind == "free":
        return FreeGenerator(space)
    return TransformerGenerator(space, size=size, blocks=blocks, heads=heads, random=random)


def sampled(
    logits: Masks, noise: torch.Generator, *, base: float, temperature: float
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Soft masks of the Gumbel-sigmoid, and hard ones by rounding them."""
    soft = {
        name: gumbel_sigmoid(value, gumbel((len(value),), noise).to(value.device), base=base, temperature=temperature)
        for name, value in logits.items()
    }
    return soft, {name: (value >= 0.5).float() for name, value in soft.items()}


def on_budget(logits: Masks, hard: Masks, *, temperature: float, by_group: bool = False) -> dict[str, Tensor]:
    """Soft masks sigmoid((logits - c) / temperature), with c the logit at which as many units stay as in `hard`.

    Over all groups together or, with `by_group`, in every group separately.
    """
    if by_group:
        parts = [on_budget({name: logits[name]}, {name: hard[name]}, temperature=temperature) for name in logits]
        return {name: mask for part in parts for name, mask in part.items()}
    num_kept = sum(int(mask.sum()) for mask in hard.values())
    threshold = torch.cat(list(logits.values())).detach().topk(num_kept).values[-1]
    return {name: torch.sigmoid((value - threshold) / temperature) for name, value in logits.items()}


class GeneratorOptimizer:
    """AdamW for a generator, with clipping; steps with a non-finite gradient or out of range are skipped."""

    def __init__(self, generator: nn.Module, learning_rate: float, clip: float, *, weight_decay: float = 0.01) -> None:
        self.parameters = list(generator.parameters())
        self.learning_rate, self.clip, self.weight_decay = learning_rate, clip, weight_decay
        self.adam = torch.optim.AdamW(self.parameters, lr=learning_rate, weight_decay=weight_decay)
        self.skipped = 0

    @staticmethod
    def norm(gradients: Sequence[Tensor]) -> Tensor:
        """The L2 norm of all gradients together."""
        return torch.stack([gradient.norm() for gradient in gradients]).norm()

    def step(self, gradients: Sequence[Tensor], *, late: bool, is_good: bool = True) -> bool:
        """One step, at a fifth of the learning rate when `late`; returns whether it was taken, and counts skipped ones.

        Args:
            is_good: whether all other numbers of the gradients' batch are finite.
        """
        norm = self.norm(gradients)
        rate = self.learning_rate * (0.2 if late else 1.0)
        in_range = stays_in_range(self.parameters, rate, self.weight_decay)
        if not (is_good and in_range and torch.isfinite(norm)):
            self.skipped += 1
            return False
        for group in self.adam.param_groups:
            group["lr"] = rate
        scale = (self.clip / (norm + 1e-6)).clamp(max=1.0)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient * scale
        self.adam.step()
        self.adam.zero_grad()
        return True

    def state_dict(self) -> dict[str, Any]:
        """Adam's state and the counter."""
        return {"adam": self.adam.state_dict(), "skipped": self.skipped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`."""
        self.adam.load_state_dict(state["adam"])
        self.skipped = state["skipped"]


def budget_distance(space: PruningSpace, masks: Masks, target: int, budget: Budget | None = None) -> Tensor:
    """R(a, rho) = |log a - log rho| over the parameters the space reaches (docs/methods/atp.md), differentiable.

    If the `budget` counts time, over that; `target` is in the same unit.
    """
    budget = budget or Budget()
    fixed = budget.fixed(space)
    left = budget.cost_left(space, masks) - fixed
    return (torch.log(left.clamp(min=1.0)) - torch.log(torch.tensor(float(max(1, target - fixed))))).abs()
