"""Masks on activations: gates that simulate a removal, and the noise that lets a decision be learned."""

import math
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from tuneprune.structure.space import Gate, Group, Masks, PruningSpace
from tuneprune.structure.weights import base_module

Mode = Literal["masked", "open"]
Site = tuple[str, str, bool]  # module, side, base_only


class Gates:
    """Hooks that multiply masks into a model, installed once and switched on by `with gates(masks):`.

    Keep the gates on through backward: activation checkpointing runs the forward again there, and without
    gates it would compute other activations. Mode `masked` simulates the removal exactly; `open` is ATP's
    LoRA-aware tuning forward, which masks the frozen weights and leaves LoRA open. The hooks work before and
    after LoRA injection: they are attached on entry to whatever module stands at the path.
    """

    def __init__(self, model: nn.Module, space: PruningSpace) -> None:
        self.model = model
        self.space = space
        modes: tuple[Mode, ...] = ("masked", "open")
        modules = cast("Iterator[tuple[str, nn.Module]]", model.named_modules())
        present = {path for path, _ in modules}
        self._sites = {mode: _sites(space, mode, present) for mode in modes}

    @contextmanager
    def __call__(self, masks: Masks, mode: Mode = "masked") -> Generator[None, None, None]:
        """Multiply `masks` into every forward until the context ends."""
        with ExitStack() as hooks:
            for site, parts in self._sites[mode].items():
                hooks.callback(self._attach(site, self._vector(site, parts, masks)).remove)
            yield

    def _vector(self, site: Site, parts: list[tuple[Gate, Group]], masks: Masks) -> Tensor:
        """The multiplier of a whole activation: ones, and the spread mask on every gated segment."""
        features = _features(base_module(self.model, site[0]), site[1])
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

    def _attach(self, site: Site, vector: Tensor) -> RemovableHandle:
        path, side, base_only = site
        module = base_module(self.model, path) if base_only else self.model.get_submodule(path)
        if side == "router":
            return module.register_forward_hook(lambda _, inputs, __: _route(module, vector, *inputs))
        if side == "input":
            return module.register_forward_pre_hook(lambda _, inputs: (inputs[0] * vector.to(inputs[0]), *inputs[1:]))
        return module.register_forward_hook(lambda _, __, output: output * vector.to(output))


def _features(module: Any, side: str) -> int:  # noqa: ANN401  (a linear of any kind, a norm, an embedding or a router)
    """Width of what goes into a module, or comes out of it."""
    if side == "router":
        return len(module.weight)
    if isinstance(module, nn.Embedding):
        return module.embedding_dim
    return module.weight.shape[-1 if side == "input" else 0]


class _Odds(TorchFunctionMode):
    """Adds log(mask) to the logits of one router: odds that are masked to zero are never picked and weigh nothing."""

    def __init__(self, weight: Any, mask: Tensor) -> None:  # noqa: ANN401  (compared by identity)
        super().__init__()
        smallest = torch.finfo(mask.dtype).tiny
        self.weight, self.offset = weight, mask.clamp_min(smallest).log().masked_fill(mask <= 0, -math.inf)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        result = func(*args, **(kwargs or {}))
        if func is nn.functional.linear and args[1] is self.weight:
            result = result + self.offset.to(result)
        return result


def _route(router: nn.Module, mask: Tensor, *inputs: Any) -> Any:  # noqa: ANN401  (what its family returns)
    """What the router decides under a mask: its own rule, run again, because the mask goes in before its softmax."""
    with _Odds(router.weight, mask):
        return router.forward(*inputs)


def _sites(space: PruningSpace, mode: Mode, present: set[str]) -> dict[Site, list[tuple[Gate, Group]]]:
    sites: dict[Site, list[tuple[Gate, Group]]] = {}
    for group in space.groups:
        for gate in group.gates if mode == "masked" else group.tuning_gates:
            if gate.module not in present and f"{gate.module}.weight" not in space.shapes:
                continue  # only a rewritten model has this module
            sites.setdefault((gate.module, gate.side, gate.base_only), []).append((gate, group))
    return sites


def gumbel(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Standard Gumbel noise, drawn on the generator's device (CPU: the same on every machine)."""
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
