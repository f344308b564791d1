"""Masks on activations that simulate a removal: fixed, chosen per token by a router, or drawn with noise."""

import math
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from tuneprune.structure.edits import Route
from tuneprune.structure.plan import Plan
from tuneprune.structure.space import Gate, Group, Masks, PruningSpace
from tuneprune.structure.weights import base_module

Mode = Literal["masked", "open"]
Place = tuple[str, str, bool]  # module, side, base_only
TokenMask = Callable[[Float[Tensor, "*tokens hidden"]], Float[Tensor, "*tokens units"]]
"""Computes the mask of every token's units from the input of the routed module."""


class Gates:
    """Hooks that multiply masks into a model, installed once and switched on by `with gates(masks):`.

    Keep the gates on through backward: activation checkpointing runs the forward again there, and without
    gates it would compute other activations. Mode `masked` simulates the removal exactly; `open` is ATP's
    LoRA-aware tuning forward, which masks the frozen weights and leaves LoRA open. The hooks work before and
    after LoRA injection: they are attached on entry to the module that is then at the path.
    """

    def __init__(self, model: nn.Module, space: PruningSpace) -> None:
        self.model = model
        self.space = space
        modes: tuple[Mode, ...] = ("masked", "open")
        modules = cast("Iterator[tuple[str, nn.Module]]", model.named_modules())
        present = {path for path, _ in modules}
        self._places = {mode: _places(space, mode, present) for mode in modes}

    @contextmanager
    def __call__(self, masks: Masks, mode: Mode = "masked") -> Generator[None, None, None]:
        """Multiply `masks` into every forward until the context ends."""
        with ExitStack() as hooks:
            for place, parts in self._places[mode].items():
                hooks.callback(self._attach(place, self._vector(place, parts, masks)).remove)
            yield

    def _vector(self, place: Place, parts: list[tuple[Gate, Group]], masks: Masks) -> Tensor:
        """The factors of a whole activation: the spread mask on every gated segment, ones elsewhere."""
        features = _features(base_module(self.model, place[0]), place[1])
        pieces: list[Tensor] = []
        end = 0
        for gate, group in sorted(parts, key=lambda part: part[0].segment.start):
            mask = masks[group.name]
            if gate.segment.start > end:
                pieces.append(torch.ones(gate.segment.start - end, device=mask.device, dtype=mask.dtype))
            pieces.append(gate.segment.spread(mask))
            end = gate.segment.start + gate.segment.extent
        if end < features:
            pieces.append(torch.ones(features - end, device=pieces[0].device, dtype=pieces[0].dtype))
        return torch.cat(pieces)

    def _attach(self, place: Place, vector: Tensor) -> RemovableHandle:
        path, side, base_only = place
        module = base_module(self.model, path) if base_only else self.model.get_submodule(path)
        if side == "router":
            return module.register_forward_hook(lambda _, inputs, __: _route(module, vector, *inputs))
        if side == "input":
            return module.register_forward_pre_hook(lambda _, inputs: (inputs[0] * vector.to(inputs[0]), *inputs[1:]))
        return module.register_forward_hook(lambda _, __, output: output * vector.to(output))


def _features(module: nn.Module, side: str) -> int:
    """Width of the input or the output of a linear, norm, embedding or router."""
    if isinstance(module, nn.Embedding):
        return module.embedding_dim
    return cast("Tensor", module.weight).shape[-1 if side == "input" else 0]


class _MaskedOdds(TorchFunctionMode):
    """Adds log(mask) to the logits of one router: odds that are masked to zero are never picked and weigh nothing."""

    def __init__(self, weight: object, mask: Tensor) -> None:
        super().__init__()
        smallest = torch.finfo(mask.dtype).tiny
        self.weight, self.offset = weight, mask.clamp_min(smallest).log().masked_fill(mask <= 0, -math.inf)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:
        result = func(*args, **(kwargs or {}))
        if func is nn.functional.linear and args[1] is self.weight:
            result = result + self.offset.to(result)
        return result


def _route(router: nn.Module, mask: Tensor, *inputs: object) -> object:
    """The decision of a router under a mask: its forward, run again, because the mask acts before its softmax."""
    with _MaskedOdds(router.weight, mask):
        return router.forward(*inputs)


def _places(space: PruningSpace, mode: Mode, present: set[str]) -> dict[Place, list[tuple[Gate, Group]]]:
    places: dict[Place, list[tuple[Gate, Group]]] = {}
    for group in space.groups:
        for gate in group.gates if mode == "masked" else group.tuning_gates:
            if gate.module not in present and f"{gate.module}.weight" not in space.shapes:
                continue  # only a rewritten model has this module
            places.setdefault((gate.module, gate.side, gate.base_only), []).append((gate, group))
    return places


def router_logits(
    states: Float[Tensor, "*tokens hidden"], router: Float[Tensor, "experts hidden"]
) -> Float[Tensor, "*tokens experts"]:
    """The logits of every expert for every token, in float32 whatever the model computes in."""
    with torch.autocast(states.device.type, enabled=False):
        return nn.functional.linear(states.float(), router.to(states.device).float())


def top_experts(logits: Float[Tensor, "*tokens experts"], top_k: int) -> Int[Tensor, "*tokens chosen"]:
    """The `top_k` best experts of every token; ties go to the first, on every device."""
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

    A routed group has the path of the module whose input its router reads, and its units gate the input of one linear
    inside that module (as the MLP channels of every space do). Keep it on through backward, like `Gates`.
    """
    with ExitStack() as hooks:
        for name, mask in masks.items():
            (gate,) = space.by_name[name].gates
            for handle in _hook_mask(model.get_submodule(name), model.get_submodule(gate.module), mask):
                hooks.callback(handle.remove)
        yield


def _hook_mask(reader: nn.Module, consumer: nn.Module, mask: TokenMask) -> tuple[RemovableHandle, RemovableHandle]:
    """Hooks that compute a mask from the input of `reader` and multiply it into the input of `consumer` inside it."""
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
    """Let the dense model compute what the compressed one will: all removals as masks, routers stored in `dtype`."""
    device = next(model.parameters()).device
    masks = {name: mask.to(device) for name, mask in plan.masks(space).items()}
    routes = {edit.group: token_mask(edit, dtype) for edit in plan.of_kind(Route)}
    with Gates(model, space)(masks), routed(model, space, routes):
        yield


def gumbel(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Standard Gumbel noise, drawn on the device of the generator (on the CPU it is the same on every machine)."""
    uniform = torch.rand(shape, generator=generator, device=generator.device)
    return -torch.log(-torch.log(uniform + 1e-10) + 1e-10)


def gumbel_sigmoid(
    logits: Float[Tensor, "*units"], noise: Float[Tensor, "*units"], *, base: float, temperature: float
) -> Float[Tensor, "*units"]:
    """Soft masks sigmoid((logits + noise + base) / temperature): ATP's relaxed binary decision."""
    return torch.sigmoid((logits + noise + base) / temperature)


def straight_through(hard: Float[Tensor, "*units"], soft: Float[Tensor, "*units"]) -> Float[Tensor, "*units"]:
    """The value of `hard` with the gradient of `soft`."""
    return (hard - soft).detach() + soft
