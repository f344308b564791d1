"""Which class will load what a method makes of a model, known before any training."""

from collections.abc import Iterator, Mapping

from transformers import PretrainedConfig

from tuneprune import families
from tuneprune.export import shipped
from tuneprune.methods.base import Method
from tuneprune.structure.architecture import Architecture
from tuneprune.structure.budget import Budget, allocate, units_per_step
from tuneprune.structure.space import PruningSpace


def stock_holds(
    config: PretrainedConfig, architecture: Architecture, space: PruningSpace, method: Method, budget: Budget
) -> bool | None:
    """Whether a stock class holds what the method makes of the model; None where that depends on its decision.

    Layers of free widths do not count as such a case, though they may turn out equal.
    """
    if method.adds(space):
        return False
    held = {host is not None for host in _hosts(config, architecture, space, method.constrained(budget))}
    return held.pop() if len(held) == 1 else None


def loads_as(
    config: PretrainedConfig,
    architecture: Architecture,
    space: PruningSpace,
    budget: Budget,
    method: Method | None = None,
) -> str:
    """The class, or classes, that load what comes out, with their model types, and what that takes.

    Args:
        method: None where neither it nor how much to keep is chosen yet: any size, and nothing added.
    """
    hosts: list[PretrainedConfig | None] = [None]
    if method is None:
        hosts = list(_hosts(config, architecture, space, budget, is_open=True))
    elif not method.adds(space):
        hosts = list(_hosts(config, architecture, space, method.constrained(budget)))
    stock = {f"{families.stock_class(host).__name__} ({host.model_type})" for host in hosts if host is not None}
    named = " or ".join(sorted(stock))
    own = f"{shipped.classes(config)['AutoModelForCausalLM']} ({config.model_type}), with one file of remote code"
    if None not in hosts:
        return f"{named}, stock Hugging Face" + (", by what goes" if len(stock) > 1 else "")
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
