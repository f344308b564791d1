"""Token by token: masks that a router chooses, multiplied into the dense model."""

from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tuneprune.structure.edits import Route
from tuneprune.structure.masks import Gates
from tuneprune.structure.plan import Plan
from tuneprune.structure.space import PruningSpace

TokenMask = Callable[[Float[Tensor, "*tokens hidden"]], Float[Tensor, "*tokens units"]]
"""The mask of every token's units, from what the routed module reads."""


def router_logits(
    states: Float[Tensor, "*tokens hidden"], router: Float[Tensor, "experts hidden"]
) -> Float[Tensor, "*tokens experts"]:
    """How well every expert suits every token, in float32 whatever the model computes in."""
    with torch.autocast(states.device.type, enabled=False):
        return nn.functional.linear(states.float(), router.to(states.device).float())


def top_experts(logits: Float[Tensor, "*tokens experts"], top_k: int) -> Int[Tensor, "*tokens chosen"]:
    """The `top_k` best experts of every token; of equal ones the first, on every device."""
    return logits.argsort(dim=-1, descending=True, stable=True)[..., :top_k]


def token_mask(edit: Route, dtype: torch.dtype | None = None) -> TokenMask:
    """The hard masks of a plan's Route, whose router is stored in `dtype` (default: as it is)."""
    router, experts = edit.router["weight"].to(dtype), edit.experts

    def mask(states: Tensor) -> Tensor:
        chosen = top_experts(router_logits(states, router), edit.top_k)
        return experts.to(states.device)[chosen].any(-2)

    return mask


@contextmanager
def routed(model: nn.Module, space: PruningSpace, masks: Mapping[str, TokenMask]) -> Generator[None, None, None]:
    """Multiply token masks into every forward until the context ends.

    A routed group bears the path of the module that its router reads along with, and its units gate the input of one
    linear inside (the MLP channels of every space do). Keep it on through backward, like `Gates`.
    """
    with ExitStack() as hooks:
        for name, mask in masks.items():
            (gate,) = space.by_name[name].gates
            for handle in _attach(model.get_submodule(name), model.get_submodule(gate.module), mask):
                hooks.callback(handle.remove)
        yield


def _attach(reader: nn.Module, consumer: nn.Module, mask: TokenMask) -> tuple[RemovableHandle, RemovableHandle]:
    """Hooks that multiply the mask of what `reader` reads into what `consumer` inside it reads."""
    made: list[Tensor] = []

    def read(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        made[:] = [mask(inputs[0])]

    def multiply(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return inputs[0] * made.pop().to(inputs[0]), *inputs[1:]

    return reader.register_forward_pre_hook(read), consumer.register_forward_pre_hook(multiply)


@contextmanager
def simulated(
    model: nn.Module, space: PruningSpace, plan: Plan, dtype: torch.dtype | None = None
) -> Generator[None, None, None]:
    """The dense model computing what the compressed one will: masks of all that goes, and routers stored in `dtype`."""
    device = next(model.parameters()).device
    masks = {name: mask.to(device) for name, mask in plan.masks(space).items()}
    routes = {edit.group: token_mask(edit, dtype) for edit in plan.of_kind(Route)}
    with Gates(model, space)(masks), routed(model, space, routes):
        yield
