"""Experts: overlapping sets of an MLP's channels, scored by a small recurrent network and chosen by routers."""

import math
from collections.abc import Collection, Mapping
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import kl_div, one_hot

from tuneprune.budget import Budget, check_reachable
from tuneprune.calibration.batch import Batch
from tuneprune.calibration.subject import Runtime
from tuneprune.errors import ConfigError
from tuneprune.methods.generator import KEY, budget_distance
from tuneprune.structure.edits import Route
from tuneprune.structure.masks import gumbel, gumbel_sigmoid, router_logits, straight_through
from tuneprune.structure.space import PruningSpace

Logits = Mapping[str, Tensor]
"""By group name: [units], or [experts, units] where the group is routed."""
INPUT_SIZE = 32


class ExpertGenerator(nn.Module):
    """Logits of all units, one set per expert where a group is routed, and the routers (docs/methods/tomoe.md).

    Frozen random inputs for every group and expert, a bidirectional GRU along the groups, and per group LayerNorm, GELU
    and a linear head. A group that is not routed reads the mean of its experts' embeddings.
    """

    inputs: Tensor

    def __init__(
        self,
        space: PruningSpace,
        routed: Collection[str],
        *,
        num_experts: int,
        hidden: int,
        size: int,
        random: torch.Generator,
    ) -> None:
        super().__init__()
        self.names, self.routed = [group.name for group in space.groups], set(routed)
        with torch.random.fork_rng(devices=[]):  # modules draw their initial weights from the global stream
            torch.manual_seed(int(torch.randint(2**31, (), generator=random)))
            self.register_buffer("inputs", torch.randn(len(self.names), num_experts, INPUT_SIZE))
            self.gru = nn.GRU(INPUT_SIZE, size, bidirectional=True)
            self.heads = nn.ModuleDict({_key(group.name): _head(2 * size, group.size) for group in space.groups})
            self.routers = nn.ParameterDict(
                {_key(name): nn.Parameter(torch.randn(num_experts, hidden) / math.sqrt(hidden)) for name in routed}
            )

    def forward(self) -> dict[str, Tensor]:
        """Logits of every unit, by group name."""
        embeddings = self.gru(self.inputs)[0]  # [groups, experts, 2 * size]
        return {
            name: self.heads[_key(name)](own if name in self.routed else own.mean(0))
            for name, own in zip(self.names, embeddings, strict=True)
        }

    def router(self, name: str) -> Float[Tensor, "experts hidden"]:
        """The router of a routed group."""
        return self.routers[_key(name)]


class SampledChoice:
    """Token masks of one search step: every token draws an expert, with the gradient of the relaxed draw.

    `balance` is the load balance of the last forward. The noise is drawn once, so that activation checkpointing
    computes the same masks again.
    """

    def __init__(self, router: Tensor, experts: Tensor, random: torch.Generator, temperature: float) -> None:
        self.router, self.experts, self.random, self.temperature = router, experts, random, temperature
        self.balance: Tensor | None = None
        self._noise: Tensor | None = None

    def __call__(self, states: Float[Tensor, "*tokens hidden"]) -> Float[Tensor, "*tokens units"]:
        """The mask of every token."""
        logits = router_logits(states, self.router)
        if self._noise is None:
            self._noise = gumbel(tuple(logits.shape), self.random).to(logits.device)
        soft = ((logits + self._noise) / self.temperature).softmax(-1)
        chosen = one_hot(soft.argmax(-1), logits.shape[-1]).to(soft)
        self.balance = load_balance(logits.softmax(-1), chosen)
        return straight_through(chosen, soft) @ self.experts


def sampled_experts(
    logits: Logits, random: torch.Generator, *, base: float, temperature: float
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Hard masks of the Gumbel-sigmoid, with the gradient of the soft ones and without a gradient."""
    passed_through, hard = {}, {}
    for name, value in logits.items():
        noise = gumbel(tuple(value.shape), random).to(value.device)
        soft = gumbel_sigmoid(value, noise, base=base, temperature=temperature)
        hard[name] = (soft >= 0.5).float().detach()
        passed_through[name] = straight_through(hard[name], soft)
    return passed_through, hard


def union(experts: Float[Tensor, "experts units"]) -> Float[Tensor, " units"]:
    """1 for a unit that any expert has; the gradient is shared by the experts that have it."""
    return experts.amax(0)


def load_balance(
    probabilities: Float[Tensor, "*tokens experts"], chosen: Float[Tensor, "*tokens experts"]
) -> Float[Tensor, ""]:
    """E * sum over experts of (share of tokens) * (mean probability): 1 where all experts have equal loads."""
    num_experts = chosen.shape[-1]
    shares, means = (values.reshape(-1, num_experts).mean(0) for values in (chosen, probabilities))
    return num_experts * (shares * means).sum()


def log_distance(value: Tensor, target: float) -> Tensor:
    """log(max / min) of a positive value and its target."""
    return (value.double().clamp(min=1e-6).log() - math.log(target)).abs()


def divergence(
    teacher: Float[Tensor, "tokens vocabulary"], student: Float[Tensor, "tokens vocabulary"]
) -> Float[Tensor, ""]:
    """KL(teacher || student) of the logits, summed over tokens."""
    return kl_div(student.log_softmax(-1), teacher.log_softmax(-1), reduction="sum", log_target=True)


def size_terms(
    space: PruningSpace, masks: Logits, routed: Collection[str], *, target: int, expert_share: float | None
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Distances of two sizes of a model from their targets, as log ratios.

    The first is the number of kept parameters against `target`, the second the channels of the widest experts relative
    to those in any expert, against `expert_share`. If that is None, the first counts parameters that one token uses,
    with the widest expert of every group, and the second is the share of channels in any expert, against 1.
    """
    unions = {name: union(masks[name]) for name in routed}
    widest = {name: masks[name][masks[name].detach().sum(1).argmax()] for name in routed}
    in_any, in_widest = torch.cat(list(unions.values())), torch.cat(list(widest.values()))
    counted = {**masks, **(widest if expert_share is None else unions)}
    budget_term = budget_distance(space, counted, target).float()
    if expert_share is None:
        return budget_term, log_distance(in_any.mean(), 1.0).float()
    return budget_term, log_distance(in_widest.sum() / in_any.sum().clamp(min=1), expert_share).float()


def mean_tokens(runtime: Runtime, batch: Batch) -> float:
    """Tokens with a label per process, so that averages over processes are means per token."""
    runtime.average([count := (batch["labels"][:, 1:] >= 0).sum().float()])
    return max(1.0, count.item())


def best_units(scores: Float[Tensor, "experts units"], width: int) -> Bool[Tensor, "experts units"]:
    """The `width` best units of every expert."""
    order = scores.argsort(dim=1, descending=True, stable=True)[:, :width]
    return torch.zeros_like(scores, dtype=torch.bool).scatter(1, order, value=True)


def expert_width(kept: int, share: float, num_experts: int, step: int) -> int:
    """Units of one expert among `kept` ones: their `share`, or more if all units need a place, in whole steps."""
    wanted = max(share * kept, kept / num_experts)
    return min(kept, step * math.ceil(wanted / step - 1e-9))


def shared_out(
    scores: Float[Tensor, "experts units"], kept: Bool[Tensor, " units"], width: int
) -> Bool[Tensor, "experts units"]:
    """Experts of `width` kept units each that together have every kept unit.

    First every unit is given to the expert with the highest score for it among those with room, best scores first; then
    every expert is filled up with its own best units.
    """
    num_experts, size = scores.shape
    assert num_experts * width >= int(kept.sum()), "the experts have no room for all units"
    outside = scores.double().masked_fill(~kept, -math.inf)
    owned, room, homeless = torch.zeros_like(outside, dtype=torch.bool), [width] * num_experts, int(kept.sum())
    has_owner = (~kept).tolist()
    for index in outside.flatten().argsort(descending=True, stable=True).tolist():
        if not homeless:
            break
        expert, unit = divmod(index, size)
        if has_owner[unit] or not room[expert]:
            continue
        owned[expert, unit] = has_owner[unit] = True
        room[expert] -= 1
        homeless -= 1
    return best_units(outside.masked_fill(owned, math.inf), width)


def check_routable(space: PruningSpace, budget: Budget, num_experts: int) -> None:
    """Refuse budgets that keep every MLP whole, or that the routers exceed.

    Raises:
        ConfigError: no MLP is left to route.
        UnreachableBudget: with the range of `keep` that can be reached.
    """
    mlps = [group for group in space.groups if group.kind == "mlp_channel"]
    hidden = next(space.shapes[piece.param][1] for piece in mlps[0].slices if piece.dim == 0)  # a matrix comes first
    check_reachable(space, budget, len(mlps) * num_experts * hidden)
    if {group.name for group in mlps} <= budget.whole(space):
        raise ConfigError(
            "budget.protect keeps every MLP whole, and method `tomoe` routes MLPs. Protect fewer, or choose another"
            " method."
        )


def on_cpu(route: Route) -> Route:
    """The edit as a plan stores it."""
    return replace(
        route, experts=route.experts.cpu(), router={name: tensor.cpu() for name, tensor in route.router.items()}
    )


def _head(features: int, units: int) -> nn.Sequential:
    """A head with small weights, so that all logits start near zero."""
    linear = nn.Linear(features, units)
    nn.init.normal_(linear.weight, std=0.1 / math.sqrt(features))
    nn.init.zeros_(linear.bias)
    return nn.Sequential(nn.LayerNorm(features), nn.GELU(), linear)


def _key(name: str) -> str:
    return name.replace(".", KEY)
