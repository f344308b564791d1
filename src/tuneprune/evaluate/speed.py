"""Speed of prefill and decoding; two models take turns at every step, so that a busy machine slows both alike."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tuneprune.errors import ConfigError
from tuneprune.evaluate.forward import last_logits
from tuneprune.model.inference import device_of, evaluation_mode

PHASES = ("prefill", "decode")


def measure_speed(
    model: nn.Module,
    *,
    batch_sizes: Sequence[int] = (1, 8),
    prompt_tokens: int = 64,
    new_tokens: int = 32,
    repeats: int = 9,
) -> dict[str, Any]:
    """Tokens/s of one model: what `compare_speed` says of each, under `model` and without ratios."""
    return _measure(
        {"model": model},
        batch_sizes=batch_sizes,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        repeats=repeats,
    )


def compare_speed(
    dense: nn.Module,
    pruned: nn.Module,
    twins: Mapping[str, nn.Module] | None = None,
    *,
    batch_sizes: Sequence[int] = (1, 8),
    prompt_tokens: int = 64,
    new_tokens: int = 32,
    repeats: int = 9,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """Tokens/s of two models, which take turns at every forward pass, and their ratio.

    `twins` are further models, by name, that take part in the same turns.

    Prefill counts the prompt's tokens over the time of the first forward pass, decode one token over the median time
    of the following cached steps (of which a busy machine interrupts some), both in all rows of the batch. Each number
    is {median, low, high} over the repeats (low and high are the extremes); a ratio is pruned / dense within one
    repeat, above 1 = faster. A short context shortens prompt and new tokens; the result holds the numbers used.
    `clock` gives seconds; that of the thread's own computing leaves out what a busy machine gave to others, where one
    thread computes all.

    Returns:
        {device, dtype, threads, prompt_tokens, new_tokens, repeats, settings: [{batch_size, phase (prefill or
        decode), dense: {...}, pruned: {...}, ratio: {...}, twins: {name: {speed: {...}, ratio: {...}, over_pruned:
        {...}}}}, ...]}, in tokens/s; a twin's ratios are over dense and over pruned.

    Raises:
        ConfigError: no repeats, or a batch size below 1.
    """
    return _measure(
        {"dense": dense, "pruned": pruned, **(twins or {})},
        batch_sizes=batch_sizes,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        repeats=repeats,
        clock=clock,
    )


def _measure(
    models: Mapping[str, nn.Module],
    *,
    batch_sizes: Sequence[int],
    prompt_tokens: int,
    new_tokens: int,
    repeats: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    if repeats < 1 or min(batch_sizes, default=0) < 1:
        raise ConfigError("speed: repeats and batch sizes have to be at least 1.")
    prompt_tokens, new_tokens = _fit(models, prompt_tokens, new_tokens)
    first = next(iter(models.values()))
    settings = []
    for batch_size in batch_sizes:
        rates = _rates(models, batch_size, prompt_tokens, new_tokens, repeats, clock)
        settings += [_summarize(batch_size, phase, rates[phase]) for phase in PHASES]
    return {
        "device": device_name(device_of(first)),
        "dtype": str(next(first.parameters()).dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "prompt_tokens": prompt_tokens,
        "new_tokens": new_tokens,
        "repeats": repeats,
        "settings": settings,
    }


def _fit(models: Mapping[str, Any], prompt_tokens: int, new_tokens: int) -> tuple[int, int]:
    context = min(model.config.max_position_embeddings for model in models.values())
    new_tokens = max(1, min(new_tokens, context // 2))
    return max(1, min(prompt_tokens, context - new_tokens)), new_tokens


def _rates(
    models: Mapping[str, Any],
    batch_size: int,
    prompt_tokens: int,
    new_tokens: int,
    repeats: int,
    clock: Callable[[], float],
) -> dict[str, dict[str, list[float]]]:
    """Tokens/s by phase and model, one number a repeat, after one repeat that is thrown away."""
    vocabulary = min(model.config.vocab_size for model in models.values())
    prompt = torch.randint(vocabulary, (batch_size, prompt_tokens), generator=torch.Generator().manual_seed(0))
    rates = {phase: {name: [] for name in models} for phase in PHASES}
    for repeat in range(-1, repeats):
        turns = [Turns(model, prompt, clock) for model in models.values()]
        for step in range(-1, new_tokens):  # -1 is the prefill
            first = (repeat + step) % len(turns)  # nobody always goes second
            for turn in (*turns[first:], *turns[:first]):
                turn.step()
        for name, turn in zip(models, turns, strict=True):
            if repeat >= 0:
                rates["prefill"][name].append(batch_size * prompt_tokens / turn.seconds[0])
                rates["decode"][name].append(batch_size / statistics.median(turn.seconds[1:]))
    return rates


class Turns:
    """One model's prefill and cached steps, one at a time, with the seconds each took."""

    def __init__(self, model: nn.Module, prompt: Tensor, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.model, self.ids, self.cache = model, prompt.to(device_of(model)), None
        self.wait: Callable[[], object] = torch.cuda.synchronize if self.ids.is_cuda else _nothing
        self.options = last_logits(model, 1)
        self.seconds: list[float] = []

    def step(self) -> None:
        """One forward pass: the prompt first, then the token that the last pass makes most probable."""
        with evaluation_mode(self.model):
            self.wait()
            start = self.clock()
            output = self.model(input_ids=self.ids, past_key_values=self.cache, use_cache=True, **self.options)
            self.ids, self.cache = output.logits[:, -1:].argmax(-1), output.past_key_values
            self.wait()
            self.seconds.append(self.clock() - start)


def _nothing() -> None:
    """The wait of a device that does its work at once."""


def _summarize(batch_size: int, phase: str, rates: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    row: dict[str, Any] = {"batch_size": batch_size, "phase": phase}
    if "dense" not in rates:
        return row | {name: _spread(numbers) for name, numbers in rates.items()}
    dense, pruned = rates["dense"], rates["pruned"]
    twins = {
        name: {"speed": _spread(twin), "ratio": _relative(twin, dense), "over_pruned": _relative(twin, pruned)}
        for name, twin in rates.items()
        if name not in ("dense", "pruned")
    }
    row |= {"dense": _spread(dense), "pruned": _spread(pruned), "ratio": _relative(pruned, dense)}
    return row | ({"twins": twins} if twins else {})


def _relative(rates: Sequence[float], base: Sequence[float]) -> dict[str, float]:
    return _spread([rate / other for rate, other in zip(rates, base, strict=True)])


def _spread(numbers: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(numbers), "low": min(numbers), "high": max(numbers)}


def device_name(device: torch.device) -> str:
    """The name of a GPU, or the kind of another device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
