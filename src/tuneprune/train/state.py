"""Everything a tuning has to remember to go on exactly where it was."""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel

from tuneprune.train.nested import flatten


class Remembers(Protocol):
    """Something with a state of its own."""

    def state_dict(self) -> dict[str, Any]:
        """The state, on any device."""
        ...

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Go on from a `state_dict`."""
        ...


def capture(model: PreTrainedModel, parts: Mapping[str, Remembers]) -> dict[str, Any]:
    """Trained weights, the state of every part by its name, and the random streams of torch."""
    cuda = torch.cuda.get_rng_state_all() if model.device.type == "cuda" else []
    return {
        "parameters": {name: p.detach() for name, p in model.named_parameters() if p.requires_grad},
        "random": torch.get_rng_state(),
        "cuda_random": cuda,
        **{name: part.state_dict() for name, part in parts.items()},
    }


def restore(model: PreTrainedModel, parts: Mapping[str, Remembers], state: dict[str, Any]) -> None:
    """Put back what `capture` took."""
    named = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in state["parameters"].items():
            named[name].copy_(value)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    torch.set_rng_state(state["random"])
    if state["cuda_random"]:
        torch.cuda.set_rng_state_all(state["cuda_random"])


def state_bytes(model: PreTrainedModel, optimizer: torch.optim.AdamW, search: Remembers) -> int:
    """What a checkpoint takes at least, known before the first step: trained weights, moments, the search's state."""
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    moments = [parameter for group in optimizer.param_groups for parameter in group["params"]] * 2
    own = flatten(search.state_dict())[1].values()
    return sum(tensor.nbytes for tensor in [*weights, *moments, *own])
