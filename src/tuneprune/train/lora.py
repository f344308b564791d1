"""LoRA in and out of a model, its module paths intact."""

import torch
from peft import LoraConfig, inject_adapter_in_model
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
        lora_alpha=options.alpha if options.alpha is not None else options.rank,
        lora_dropout=options.dropout,
        target_modules=list(architecture.linears()),
        bias="none",
    )
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model, adapter_name=ADAPTER)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)


@torch.no_grad()
def merge_lora(model: PreTrainedModel, architecture: Architecture) -> None:
    """Add LoRA into the weights and put the plain linears back; does nothing to a model without LoRA."""
    for path in architecture.linears():
        layer = model.get_submodule(path)
        if not hasattr(layer, "base_layer"):
            continue
        layer.merge(safe_merge=True)
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, layer.base_layer)
    for marker in ("peft_config", "_hf_peft_config_loaded"):
        if marker in vars(model):
            delattr(model, marker)
    model.requires_grad_(True)
