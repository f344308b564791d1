"""How long the parts of a model take, by width: the table for budgets of time."""

import math
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from importlib.metadata import version
from typing import Any

import torch
from scipy.optimize import isotonic_regression
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from tuneprune import families
from tuneprune.budget import units_per_step
from tuneprune.budget.chains import MultipleOf
from tuneprune.budget.latency_table import Curve, LatencyTable, Phase, shapes_of
from tuneprune.compress import cut
from tuneprune.evaluate.speed import Turns, device_name, fit_context
from tuneprune.structure import spaces
from tuneprune.structure.plan import Plan
from tuneprune.structure.space import Kind, PruningSpace

POINTS = 8
"""Widths at which a part is measured, evenly spread, in addition to the narrowest one."""
SMALL_VOCABULARY = 64
PREFILLS = 4
"""Prompts per round, where prompts are measured."""
UNCACHED = 2**27
"""Bytes of weights that no cache holds: a measured model has enough layers for them, or as many as the dense model."""
LIMIT_S, LEAST_ROUNDS = 60.0, 2
"""After so many seconds no further round begins, if at least so many are done."""


def measure_latency(
    config: PretrainedConfig,
    *,
    device: torch.device,
    dtype: torch.dtype,
    phase: Phase = "decode",
    batch_size: int = 1,
    multiple_of: MultipleOf = "auto",
    prompt_tokens: int = 64,
    new_tokens: int = 16,
    rounds: int = 7,
    clock: Callable[[], float] = time.perf_counter,
) -> LatencyTable:
    """Measure one layer of a model with random weights, its attention and its MLP at a handful of widths.

    Every width is a model of the stock class with a few layers: enough that a layer finds its weights in the caches
    only where it would in the whole model. All take turns at every forward pass, so that a busy machine slows them
    alike. A time is the median over all passes of `rounds` rounds, after a warm-up round; there are fewer rounds where
    they would take more than a minute. Where more units seem to take less time, the closest rising times are used.

    Args:
        clock: gives seconds; on a busy machine, use the computing time of a single thread.

    Raises:
        UnsupportedModel: a family that the space `width` cannot treat, such as a mixture of experts.
    """
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config)
    space = spaces.build("width", families.describe_config(config), skeleton)
    grid: dict[Kind, list[int]] = {
        group.kind: widths(group.size, units_per_step(group, multiple_of)) for group in space.groups[:2]
    }
    models = [_model(_fewer_layers(config, space, units, dtype), device, dtype, units) for units in _points(grid)]
    models.insert(0, _model(_fewer_layers(config, space, whole(space), dtype, is_small=False), device, dtype))
    prompt_tokens, new_tokens = fit_context(config.max_position_embeddings, prompt_tokens, new_tokens)
    prompt = torch.randint(vocabulary(config), (batch_size, prompt_tokens), generator=torch.Generator().manual_seed(0))
    timed = [_Timed(model, prompt, phase, clock) for model in models]
    _take_turns(timed, rounds, new_tokens + 1 if phase == "decode" else PREFILLS)
    first = timed[0]
    attention, mlp = (
        _rising(units, [each.median(part) for each in timed[1 : 1 + len(units)]])
        for units, part in zip(grid.values(), ("attention", "mlp"), strict=True)
    )
    layer = first.median("layer")
    return LatencyTable(
        model=shapes_of(space),
        engine="transformers",
        phase=phase,
        batch_size=batch_size,
        prompt_tokens=prompt_tokens,
        device=device_name(device),
        dtype=str(dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
        fixed_ms=round(1e3 * max(1e-6, first.median("rest")), 6),
        layer_ms=round(1e3 * max(0.0, layer - first.median("attention") - first.median("mlp")), 6),
        attention=attention,
        mlp=mlp,
        environment={name: version(name) for name in ("torch", "transformers")} | {"machine": platform.machine()},
    )


def widths(size: int, step: int) -> list[int]:
    """Numbers of units to measure, multiples of `step`, from the smallest to all."""
    points = (round(size * index / POINTS / step) * step for index in range(1, POINTS))
    return sorted({step, *(max(step, point) for point in points), size})


def _rising(units: list[int], seconds: Sequence[float]) -> Curve:
    """The closest times that never fall, rounded to nanoseconds."""
    times = isotonic_regression([1e3 * each for each in seconds]).x.tolist()
    return Curve(units=units, milliseconds=[round(time, 6) for time in times])


def whole(space: PruningSpace) -> dict[Kind, int]:
    """Units of each kind in a layer of the dense model."""
    return {group.kind: group.size for group in space.groups}


def vocabulary(config: PretrainedConfig) -> int:
    """Vocabulary size of the models whose head is not measured."""
    return min(config.vocab_size, SMALL_VOCABULARY)


def _points(grid: Mapping[Kind, list[int]]) -> list[dict[Kind, int]]:
    """Combined widths of all kinds, so that each model measures one width of every kind."""
    longest = max(map(len, grid.values()))
    return [{kind: units[min(index, len(units) - 1)] for kind, units in grid.items()} for index in range(longest)]


def _fewer_layers(
    config: PretrainedConfig,
    space: PruningSpace,
    kept: Mapping[Kind, int],
    dtype: torch.dtype,
    *,
    is_small: bool = True,
) -> PretrainedConfig:
    """The config of so many first layers that they have `UNCACHED` bytes with these numbers of units.

    Args:
        is_small: with a small vocabulary, so that embeddings and head take little memory.
    """
    architecture = families.describe_config(config)
    fixed = space.num_parameters - space.num_prunable
    left = space.count({group.name: kept[group.kind] for group in space.groups}) - fixed
    wanted = math.ceil(UNCACHED / (left / len(architecture.blocks) * dtype.itemsize))
    with torch.device("meta"):
        depth = spaces.build("depth", architecture, AutoModelForCausalLM.from_config(config))
    present = {group.name: int(group.layer < wanted) for group in depth.groups}
    fewer = families.uniform_config(config, architecture, depth, present)
    assert fewer is not None, "a stock class holds fewer layers of its own"
    if is_small:
        fewer.vocab_size, fewer.pad_token_id = vocabulary(config), None
    return fewer


def _model(
    config: PretrainedConfig, device: torch.device, dtype: torch.dtype, kept: Mapping[Kind, int] | None = None
) -> PreTrainedModel:
    """A model with random weights, cut to these numbers of units."""
    with torch.random.fork_rng(devices=[]):  # the cut model is drawn before it gets its weights
        torch.manual_seed(0)
        model: Any = AutoModelForCausalLM.from_config(deepcopy(config), dtype=dtype)  # a cut writes to it
        if kept is not None:
            architecture = families.describe_config(config)
            space = spaces.build("width", architecture, model)
            masks = {group.name: (torch.arange(group.size) < kept[group.kind]).float() for group in space.groups}
            model = cut(model, architecture, space, Plan.from_masks(masks, space))
    return model.to(device).eval()


class _Timed:
    """One model of a few layers, with the seconds that a layer, its parts and the rest took in each measured pass."""

    def __init__(self, model: PreTrainedModel, prompt: Tensor, phase: Phase, clock: Callable[[], float]) -> None:
        self.model, self.prompt, self.phase, self.clock = model, prompt, phase, clock
        self.blocks = families.describe_config(model.config).blocks
        self.latest: dict[str, float] = dict.fromkeys(("layer", "attention", "mlp"), 0.0)
        self.seconds: dict[str, list[float]] = {part: [] for part in ("rest", *self.latest)}
        for block in self.blocks:
            paths = {"layer": block.path, "attention": block.attention.path, "mlp": block.feed_forward.path}
            for part, path in paths.items():
                self._watch(part, model.get_submodule(path))

    def median(self, part: str) -> float:
        """Median seconds of a pass in this part of one layer, or in the rest of the model."""
        return statistics.median(self.seconds[part])

    def step(self, index: int, *, counts: bool) -> None:
        """One pass: a prompt where `index` is 0 or prompts are measured, else one token."""
        is_prompt = index == 0 or self.phase == "prefill"
        if is_prompt:
            self.turn = Turns(self.model, self.prompt, self.clock)
        self.latest = dict.fromkeys(self.latest, 0.0)
        self.turn.step()
        if counts and is_prompt == (self.phase == "prefill"):
            self.seconds["rest"].append(self.turn.seconds[-1] - self.latest["layer"])
            for part, seconds in self.latest.items():
                self.seconds[part].append(seconds / len(self.blocks))

    def _watch(self, part: str, module: nn.Module) -> None:
        started = 0.0

        def before(*_: object) -> None:
            nonlocal started
            self.turn.wait()
            started = self.clock()

        def after(*_: object) -> None:
            self.turn.wait()
            self.latest[part] += self.clock() - started

        module.register_forward_pre_hook(before)
        module.register_forward_hook(after)


def _take_turns(timed: Sequence[_Timed], rounds: int, passes: int) -> None:
    """All passes of all rounds, where the models take turns at each pass; the first round is a warm-up."""
    began = time.perf_counter()
    for number in range(-1, rounds):
        if number >= LEAST_ROUNDS and time.perf_counter() - began > LIMIT_S:
            return
        for index in range(passes):
            for one in timed if (number + index) % 2 else reversed(timed):
                one.step(index, counts=number >= 0)
