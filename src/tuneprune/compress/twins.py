"""Stock models with random weights and the size of a pruned model, to measure what equal widths would give.

A decision may cut any kind of unit from any layer; its twin has the same number of parameters, but equal numbers of KV
groups and MLP channels (or experts) in all layers. Only the speed and memory of a twin are meaningful.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from tuneprune import families
from tuneprune.budget import units_per_step
from tuneprune.structure.architecture import Architecture
from tuneprune.structure.space import Group, Kind, PruningSpace

TOLERANCE = 0.05
"""Relative difference allowed between the sizes of a twin and the pruned model: widths in steps rarely fit exactly."""


@dataclass(frozen=True)
class Twin:
    """A planned stock model: its config, the units that every layer keeps by kind, and its number of parameters."""

    config: PretrainedConfig
    widths: Mapping[Kind, int]
    parameters: int

    def build(self, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
        """The model with random weights."""
        model: Any = AutoModelForCausalLM.from_config(self.config, dtype=dtype)
        return model.to(device).eval()


def uniform_twin(
    config: PretrainedConfig,
    architecture: Architecture,
    space: PruningSpace,
    target: int,
    shares: Mapping[Kind, float],
    multiple_of: int = 1,
) -> Twin | None:
    """The stock model of `target` parameters with the same widths in all layers, or None if there is none.

    Args:
        config: of the dense model.
        space: `width` or `experts` on the dense model.
        shares: the share of each kind of unit that the pruned model kept; of the twins of the right size, the one with
            the nearest shares is taken.
        multiple_of: the widths are multiples of this number.
    """
    fallback = target / space.num_parameters
    candidates: list[tuple[float, Twin]] = []
    for counts in _counts(space, target, multiple_of):
        widths = {group.name: counts[group.kind] for group in space.groups}
        parameters = space.count(widths)
        stock = families.uniform_config(config, architecture, space, widths)
        if stock is None or abs(parameters - target) > TOLERANCE * target:
            continue
        sizes = {group.kind: group.size for group in space.groups}
        distance = max(abs(counts[kind] / sizes[kind] - shares.get(kind, fallback)) for kind in counts)
        candidates.append((distance, Twin(stock, counts, parameters)))
    return min(candidates, key=lambda candidate: candidate[0])[1] if candidates else None


def _counts(space: PruningSpace, target: int, multiple_of: int) -> Iterator[dict[Kind, int]]:
    """Units of each kind per layer that give about `target` parameters, for every number of KV groups."""
    kinds = {group.kind: group for group in space.groups}
    heads = kinds.pop("kv_group", None)
    (rest,) = kinds.values()
    steps = _steps(rest, multiple_of)
    for kept in ([0] if heads is None else _steps(heads, multiple_of)) if steps else ():
        counts: dict[Kind, int] = {} if heads is None else {heads.kind: kept}
        none, one = (_size(space, {**counts, rest.kind: width}) for width in (0, steps.start))
        wanted = round((target - none) / (one - none))  # every unit costs the same
        counts[rest.kind] = steps[min(max(wanted, 1), len(steps)) - 1]
        yield counts


def _steps(group: Group, multiple_of: int) -> range:
    """The counts of a group whose features are a multiple of `multiple_of`; none if the group is too small."""
    if group.kind == "expert":
        return range(1, group.size + 1)  # experts are whole MLPs, whose widths stay
    step = units_per_step(group, multiple_of) if multiple_of <= group.size * group.features else group.size + 1
    return range(step, group.size + 1, step)


def _size(space: PruningSpace, counts: Mapping[Kind, int]) -> int:
    return space.count({group.name: counts[group.kind] for group in space.groups})
