"""RoPE as llama.cpp computes it: a base, and where the graph has room for them, a divisor of every frequency."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from tuneprune.export.targets.base import HfConfig
from tuneprune.structure.architecture import Architecture

FROZEN = 1e30
"""Divides a frequency to almost 0, for pairs that RoPE does not turn, in a graph that turns all of them."""
STATIC = ("default", "linear", "llama3", "yarn", "longrope")


def settings(config: HfConfig, kind: str = "full_attention") -> Mapping[str, Any]:
    """RoPE's settings, those of one kind of layer where kinds differ."""
    rope = getattr(config, "rope_parameters", None) or {}
    return rope.get(kind, rope)


def rotary_width(architecture: Architecture) -> int:
    """Features of a head that turn."""
    return max(block.attention.rotary_dim for block in architecture.blocks)


def objection(config: HfConfig, architecture: Architecture, *, has_factors: bool) -> str | None:
    """Why a graph cannot turn as the model does, or None."""
    kind = settings(config).get("rope_type", "default")
    head = architecture.blocks[0].attention.head_dim
    if kind not in STATIC:
        return f"knows no `{kind}` RoPE"
    if has_factors or kind in ("default", "linear"):
        return None
    return f"has no room for `{kind}` RoPE over {head} features"


def factors(
    config: HfConfig, architecture: Architecture, turned: int
) -> tuple[dict[str, Float[Tensor, " pairs"]], float]:
    """Divisors of llama.cpp's frequencies by tensor name, and the factor that the model's RoPE has for its amplitude.

    Empty where all are 1. Those of long RoPE come in two sets, for contexts up to the original length and above.

    Args:
        turned: features of a head that the graph turns, of which the model may leave the last ones alone.
    """
    rope, width = settings(config), rotary_width(architecture)
    kind, amplitude = rope.get("rope_type", "default"), 1.0
    plain = _frequencies(rope["rope_theta"], width)
    if kind == "default":
        found = {"rope_freqs": plain}
    else:
        frequencies, amplitude = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
        found = {"rope_freqs": frequencies.double()}
    if kind == "longrope":
        sets = {"rope_factors_long": rope["long_factor"], "rope_factors_short": rope["short_factor"]}
        found = {name: plain / torch.tensor(values, dtype=torch.float64) for name, values in sets.items()}
    own = _frequencies(rope["rope_theta"], turned)
    divisors = {name: _padded(own, turning) for name, turning in found.items()}
    if all(torch.equal(values, torch.ones_like(values)) for values in divisors.values()):
        return {}, amplitude
    return {name: values.float() for name, values in divisors.items()}, amplitude


def _frequencies(base: float, width: int) -> Tensor:
    return 1.0 / base ** (torch.arange(0, width, 2, dtype=torch.float64) / width)


def _padded(own: Tensor, turning: Tensor) -> Tensor:
    """Divisors that turn llama.cpp's frequencies into the model's; further pairs do not turn."""
    divisors = torch.full_like(own, FROZEN)
    divisors[: len(turning)] = own[: len(turning)] / turning
    return divisors
