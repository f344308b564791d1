"""LoRA in and out of a model, its module paths intact."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PreTrainedModel

from tuneprune.structure.architecture import Architecture
from tuneprune.structure.weights import ADAPTER
from tuneprune.train.config import LoraOptions


def inject_lora(model: PreTrainedModel, architecture: Architecture, options: LoraOptions, seed: int) -> None:
    """Wrap every linear of every block in LoRA and freeze everything else.

    The factors' initial values follow from `seed` alone, not from what was drawn before.
    """
    model.requires_grad_(False)
    config = LoraConfig(
        r=options.rank,
        lora_alpha=options.rank if options.alpha is None else options.alpha,  # pyright: ignore[reportArgumentType]  (only its annotation wants an int)
        lora_dropout=options.dropout,
        target_modules=list(architecture.linears()),
        bias="none",
    )
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model, adapter_name=ADAPTER)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            if parameter.dtype.itemsize < torch.float32.itemsize:  # an optimiser's small steps vanish in 16 bits
                parameter.data = parameter.data.float()
            parameter.requires_grad_(True)


@contextmanager
def without_lora(model: PreTrainedModel) -> Generator[None, None, None]:
    """Inside, every LoRA layer computes what its frozen linear does."""
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        layer.enable_adapters(enabled=False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(enabled=True)


@torch.no_grad()
def merge_lora(model: PreTrainedModel, architecture: Architecture) -> None:
    """Add LoRA into the weights and put the plain linears back; does nothing to a model without LoRA."""
    for path in architecture.linears():
        layer: Any = model.get_submodule(path)
        if not hasattr(layer, "base_layer"):
            continue
        layer.merge(safe_merge=True)
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, layer.base_layer)
    for marker in ("peft_config", "_hf_peft_config_loaded"):
        if marker in vars(model):
            delattr(model, marker)
    model.requires_grad_(True)
