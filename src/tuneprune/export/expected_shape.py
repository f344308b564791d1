"""The expected result of a run, before any training: the shape of the model, and the class that will load it."""

from collections.abc import Collection, Iterator, Mapping

import torch
from transformers import PretrainedConfig, PreTrainedModel

from tuneprune import families
from tuneprune.budget import Budget, allocate, units_per_step
from tuneprune.compress import cut, shipped_code
from tuneprune.compress.shape import Shape
from tuneprune.structure.architecture import Architecture
from tuneprune.structure.edits import Addition
from tuneprune.structure.plan import Plan
from tuneprune.structure.space import PruningSpace


def foresee(
    skeleton: PreTrainedModel,
    architecture: Architecture,
    space: PruningSpace,
    budget: Budget,
    additions: Collection[Addition] = (),
) -> Shape:
    """The shape after one arbitrary decision that meets the budget, before the method has decided.

    What the constraints of space and budget force on every decision holds for this one too; what they leave open (how
    much each layer keeps) may differ from the method's decision.

    Args:
        skeleton: a model without weights, which is changed.
        budget: with the constraints that the method sets itself.
        additions: what the method adds to the model (`Method.adds`).
    """
    draw = torch.Generator().manual_seed(0)
    scores = {group.name: torch.rand(group.size, generator=draw) for group in space.groups}
    plan = Plan.from_masks(allocate(scores, space, budget), space)
    stock = families.uniform_config(skeleton.config, architecture, space, plan.widths(space))
    if stock is not None and not additions:
        return Shape.of(stock)
    if any(group.kind == "block" for group in space.groups):  # additions to a shallower model have no stock class
        shape = Shape.of(skeleton.config if stock is None else stock)
    else:
        shape = Shape.of(cut(skeleton, architecture, space, plan).config)
    return Shape(shape.config, shape.architecture, shape.hidden, shape.layers, shape.oddities | set(additions))


def loads_as(
    config: PretrainedConfig,
    architecture: Architecture,
    space: PruningSpace,
    budget: Budget,
    additions: Collection[Addition] | None = None,
) -> str:
    """The class or classes that may load the result, with their model types, and whether they need remote code.

    Args:
        budget: with the constraints that the method sets itself.
        additions: what the method adds to the model (`Method.adds`). None where neither the method nor the budget is
            chosen yet: any size, and nothing added.
    """
    hosts: list[PretrainedConfig | None] = [None]
    if not additions:
        hosts = list(_hosts(config, architecture, space, budget, is_open=additions is None))
    stock = {f"{families.stock_class(host).__name__} ({host.model_type})" for host in hosts if host is not None}
    named = " or ".join(sorted(stock))
    own = f"{shipped_code.classes(config)['AutoModelForCausalLM']} ({config.model_type}), with one file of remote code"
    if None not in hosts:
        return f"{named}, stock Hugging Face" + (", depending on what is removed" if len(stock) > 1 else "")
    return own if not stock else f"{named} where a stock class has room for the widths, else {own}"


def _hosts(
    config: PretrainedConfig, architecture: Architecture, space: PruningSpace, budget: Budget, *, is_open: bool = False
) -> Iterator[PretrainedConfig | None]:
    """The config of the stock class for every result that the budget allows, None where there is no such class."""
    kinds = {group.kind for group in space.groups}
    if kinds == {"block"}:
        yield config
    elif kinds == {"hidden"} or (budget.per_layer == "uniform" and kinds <= {"kv_group", "mlp_channel", "expert"}):
        for widths in _streams(space, budget, is_open) if kinds == {"hidden"} else _heads(space, budget):
            yield families.uniform_config(config, architecture, space, widths)
    else:
        yield None


def _streams(space: PruningSpace, budget: Budget, is_open: bool) -> Iterator[Mapping[str, int]]:
    """The width of the residual stream that meets the budget; a head of its own (SliceGPT) may narrow a tied one."""
    (group,) = space.groups
    step = units_per_step(group, budget.multiple_of)
    widest = group.size if is_open else int(allocate(space.ones(), space, budget)[group.name].sum())
    for width in range(step if space.tied or is_open else widest, widest + 1, step):
        yield {group.name: width}


def _heads(space: PruningSpace, budget: Budget) -> Iterator[Mapping[str, int]]:
    """Every number of KV groups that all layers may keep; how many channels or experts matters to no family."""
    whole = {group.name: group.size for group in space.groups}
    heads = [group for group in space.groups if group.kind == "kv_group"]
    if not heads or budget.is_exact:
        yield whole | budget.pinned(space)
        return
    step = units_per_step(heads[0], budget.multiple_of)
    for kept in range(budget.pinned(space).get(heads[0].name, step), heads[0].size + 1, step):
        yield whole | {group.name: kept for group in heads}
