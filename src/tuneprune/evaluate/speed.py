"""Speed of prefill and decoding; models take turns at every step, so that a busy machine slows all of them alike."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tuneprune.errors import ConfigError
from tuneprune.evaluate.forward import last_logits
from tuneprune.model.inference import device_of, evaluation_mode

PHASES = ("prefill", "decode")


def measure_speed(
    models: Mapping[str, PreTrainedModel],
    *,
    batch_sizes: Sequence[int] = (1, 8),
    prompt_tokens: int = 64,
    new_tokens: int = 32,
    repeats: int = 9,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """Tokens/s of models by name, which take turns at every forward pass.

    Prefill counts the prompt's tokens over the time of the first forward pass, decode one token over the median time
    of the following cached steps (a busy machine interrupts some of them), both in all rows of the batch. Each number
    is {median, low, high} over the repeats (low and high are the extremes). A short context shortens prompt and new
    tokens; the result holds the numbers used.

    Models named `dense` and `pruned` are compared: a ratio is pruned / dense within one repeat, above 1 = faster. Other
    models next to them are twins, whose ratios are over dense and over pruned.

    Args:
        clock: gives seconds. Where one thread computes everything, its own computing time leaves out what other
            programs on a busy machine took.

    Returns:
        {device, dtype, threads, prompt_tokens, new_tokens, repeats, settings: [{batch_size, phase (prefill or
        decode), NAME: {...}, ...}, ...]}, in tokens/s; with `dense` and `pruned` also ratio: {...} and twins: {NAME:
        {speed: {...}, ratio: {...}, over_pruned: {...}}}.

    Raises:
        ConfigError: no repeats, or a batch size below 1.
    """
    if repeats < 1 or min(batch_sizes, default=0) < 1:
        raise ConfigError("speed: repeats and batch sizes have to be at least 1.")
    context = min(model.config.max_position_embeddings for model in models.values())
    prompt_tokens, new_tokens = fit_context(context, prompt_tokens, new_tokens)
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


def fit_context(context: int, prompt_tokens: int, new_tokens: int) -> tuple[int, int]:
    """Both numbers of tokens, shortened so that they fit into a model's context together."""
    new_tokens = max(1, min(new_tokens, context // 2))
    return max(1, min(prompt_tokens, context - new_tokens)), new_tokens


def _rates(
    models: Mapping[str, PreTrainedModel],
    batch_size: int,
    prompt_tokens: int,
    new_tokens: int,
    repeats: int,
    clock: Callable[[], float],
) -> dict[str, dict[str, list[float]]]:
    """Tokens/s by phase and model, one number per repeat, after a warm-up repeat."""
    vocabulary = min(model.config.vocab_size for model in models.values())
    prompt = torch.randint(vocabulary, (batch_size, prompt_tokens), generator=torch.Generator().manual_seed(0))
    rates = {phase: {name: [] for name in models} for phase in PHASES}
    for repeat in range(-1, repeats):
        turns = [Turns(model, prompt, clock) for model in models.values()]
        for step in range(-1, new_tokens):  # -1 is the prefill
            first = (repeat + step) % len(turns)  # a different model starts each step
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
        self.wait: Callable[[], object] = torch.cuda.synchronize if self.ids.is_cuda else lambda: None
        self.options = last_logits(model, 1)
        self.seconds: list[float] = []

    def step(self) -> None:
        """One forward pass: the prompt first, then the most probable token of the last pass."""
        with evaluation_mode(self.model):
            self.wait()
            start = self.clock()
            output = self.model(input_ids=self.ids, past_key_values=self.cache, use_cache=True, **self.options)
            self.ids, self.cache = output.logits[:, -1:].argmax(-1), output.past_key_values
            self.wait()
            self.seconds.append(self.clock() - start)


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
