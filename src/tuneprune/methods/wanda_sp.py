"""Wanda-sp: keep the units whose weights, times the norm of what they multiply, are largest.

Wanda's score of a weight, |W_ij| ||x_j||, added up over whole units, with the same share removed from every layer.
Layers are treated in order: what a layer reads has passed through the layers before it as pruned already. No gradients.

Paper: https://arxiv.org/abs/2306.11695 (Wanda); the structured form is a baseline of https://arxiv.org/abs/2312.11983.
Changed: the unit of attention is a whole KV group, and the budget counts real parameters.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from tuneprune.budget import Budget, allocate
from tuneprune.calibration import statistics
from tuneprune.calibration.activations import consumer, input_statistics, per_unit, wanda
from tuneprune.calibration.batch import Batch
from tuneprune.calibration.finite import FiniteSums, refuse_none
from tuneprune.calibration.statistics import Statistics
from tuneprune.calibration.subject import Subject
from tuneprune.methods.base import Method, Search
from tuneprune.structure.masks import Gates
from tuneprune.structure.space import Group

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""What a layer is called with beside the hidden states."""


class WandaSp(Method):
    """Keep the units of largest weight times activation norm, the same share of every group."""

    name = "wanda_sp"
    paper = "https://arxiv.org/abs/2306.11695"
    spaces = ("width",)
    one_shot = True

    sequential: bool = Field(
        default=True, description="a layer is scored on what the pruned layers before it give, not the dense ones"
    )
    batches: int = Field(default=16, ge=1, description="calibration batches")

    def begin(self, subject: Subject, budget: Budget) -> Search:
        """Decide at once, or layer by layer."""
        space = subject.space
        if self.sequential:
            # Under the scope `local` how many units a group keeps does not depend on which ones are best.
            even = allocate({group.name: torch.ones(group.size) for group in space.groups}, space, budget, "local")
            kept = {name: int(mask.sum()) for name, mask in even.items()}
            masks = in_order(subject, [subject.calibration() for _ in range(self.batches)], kept)
        else:
            found = input_statistics(subject, self.batches)
            scores = {group.name: unit_scores(subject, group, found) for group in space.groups}
            masks = allocate(scores, space, budget, "local")
        return self.decided(masks, subject, budget)


def unit_scores(subject: Subject, group: Group, found: dict[str, Statistics]) -> Tensor:
    """Sum over a unit's features j of the mean over outputs i of |W_ij| ||x_j||."""
    return per_unit(wanda(subject, group, found[consumer(group).module]), group).sum(1)


@torch.no_grad()
def in_order(subject: Subject, batches: list[Batch], kept: dict[str, int]) -> dict[str, Tensor]:
    """The masks that keep the `kept[name]` best units of every group, each layer scored behind the pruned ones.

    One forward pass records what the layers are called with; every layer then runs twice, dense for its statistics and
    pruned for the next one's input. Held are the hidden states of all batches at one layer, and their attention masks.
    """
    model, runtime, masks = subject.model, subject.runtime, subject.space.ones()
    gates = Gates(model, subject.space)
    blocks = [block.path for block in subject.architecture.blocks]
    batches, states, calls = record(subject, blocks, batches)
    for layer, path in enumerate(blocks):
        block = model.get_submodule(path)
        groups = [group for group in subject.space.groups if group.layer == layer]
        dense = outputs(block, states, calls[layer])
        modules = [consumer(group).module for group in groups]
        found = statistics.input_statistics(
            model, modules, batches, lambda _, run=dense: next(run), runtime.average, sums=FiniteSums(runtime.accepts)
        )
        for group in groups:
            best = torch.argsort(unit_scores(subject, group, found), descending=True, stable=True)
            masks[group.name] = torch.zeros(group.size).index_fill(0, best[: kept[group.name]], 1.0)
        on_device = {name: mask.to(model.device) for name, mask in masks.items()}
        with gates(on_device):
            states = list(outputs(block, states, calls[layer]))
    return masks


def outputs(block: nn.Module, states: list[Tensor], calls: list[Arguments]) -> Iterator[Tensor]:
    """What a layer makes of the hidden states of every batch, one after the other."""
    for hidden, (rest, keywords) in zip(states, calls, strict=True):
        output = block(hidden, *rest, **keywords)
        yield output if isinstance(output, Tensor) else output[0]


def record(
    subject: Subject, blocks: list[str], drawn: list[Batch]
) -> tuple[list[Batch], list[Tensor], list[list[Arguments]]]:
    """The hidden states that the first layer reads in every batch, and what each layer is called with beside them.

    Of those batches, given back first, on which the dense model computes finite numbers.

    Raises:
        NonFinite: none of them.
    """
    batches: list[Batch] = []
    states: list[Tensor] = []
    calls: list[list[Arguments]] = [[] for _ in blocks]

    def hook(layer: int, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        rest = dict(keywords)
        hidden = inputs[0] if inputs else rest.pop("hidden_states")
        if layer == 0:
            states.append(hidden)
        calls[layer].append((inputs[1:], rest))

    with ExitStack() as hooks:
        for layer, path in enumerate(blocks):
            module = subject.model.get_submodule(path)
            listen = module.register_forward_pre_hook(
                lambda _, inputs, keywords, layer=layer: hook(layer, inputs, keywords), with_kwargs=True
            )
            hooks.callback(listen.remove)
        for batch in drawn:
            if subject.runtime.accepts(batch, [subject.runtime.loss(batch)]):
                batches.append(batch)
            else:
                del states[-1]
                for of_layer in calls:
                    del of_layer[-1]
    refuse_none(len(batches), len(drawn))
    return batches, states, calls
