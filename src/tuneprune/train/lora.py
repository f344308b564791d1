"""What of a model is tuned: LoRA, which is added and merged back without changing module paths, or parameters."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PreTrainedModel

from tuneprune.errors import ConfigError, printable, suggest
from tuneprune.structure.architecture import Architecture, Block, Experts
from tuneprune.structure.weights import ADAPTER
from tuneprune.train.config import ALL_LINEAR, LoraOptions, TuneConfig


def lora_parts(architecture: Architecture, options: LoraOptions) -> frozenset[str]:
    """The parts of a block (`q`, `out`, `up`, ...) whose linears `target_modules` names.

    A name is a linear's path inside its block, or an end of that.

    Raises:
        ConfigError: a name that fits no linear.
    """
    named = options.target_modules
    parts = {(part, _inside(block, path)) for block in architecture.blocks for part, path in _linears(block).items()}
    if isinstance(named, str):
        return frozenset(part for part, _ in parts)
    for name in named:
        if not any(_ends_with(path, name) for _, path in parts):
            known = list(dict.fromkeys(_inside(block, path) for block in architecture.blocks for path in block.linears))
            raise ConfigError(
                f"tune.lora.target_modules: no linear of this model's layers is called `{printable(name)}`; there are"
                f" {', '.join(known)}. Use these or ends of them, the same in every layer, or `{ALL_LINEAR}`."
                + suggest(name, [path.rpartition(".")[2] for path in known])
            )
    return frozenset(part for part, path in parts if any(_ends_with(path, name) for name in named))


def _linears(block: Block) -> dict[str, str]:
    """The path of the linear that holds each part of a block; packed parts share one."""
    attention, mlp = block.attention, block.feed_forward
    found = {"q": attention.q.module, "k": attention.k.module, "v": attention.v.module, "out": attention.out}
    if isinstance(mlp, Experts):
        return found
    gate = {} if mlp.gate is None else {"gate": mlp.gate.module}
    return found | gate | {"up": mlp.up.module, "down": mlp.down}


def _inside(block: Block, path: str) -> str:
    return path.removeprefix(f"{block.path}.")


def _ends_with(path: str, name: str) -> bool:
    return path == name or path.endswith(f".{name}")


def make_trainable(
    model: PreTrainedModel,
    architecture: Architecture,
    options: TuneConfig,
    seed: int,
    named_in: Architecture | None = None,
) -> None:
    """Let a tuning change what `options.train` names: LoRA, which is added, or parameters.

    For the latter the whole model becomes float32, because a forward without autocast cannot mix precisions.

    Args:
        named_in: as for `inject_lora`.
    """
    if options.train == "lora":
        inject_lora(model, architecture, options.lora, seed, named_in)
        return
    inside = tuple(f"{block.path}." for block in architecture.blocks)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(options.train == "all" or name.startswith(inside))
        if parameter.dtype.itemsize < torch.float32.itemsize:
            parameter.data = parameter.data.float()  # 16 bits would round an optimiser's small steps away


def inject_lora(
    model: PreTrainedModel,
    architecture: Architecture,
    options: LoraOptions,
    seed: int,
    named_in: Architecture | None = None,
) -> None:
    """Wrap the linears that `options` name, in every block, in LoRA, and freeze everything else.

    The initial values depend on `seed` alone, not on random numbers drawn earlier.

    Args:
        named_in: the model whose linears `options` name, where it packs its linears differently.

    Raises:
        ConfigError: a name that fits no linear.
    """
    parts = lora_parts(named_in or architecture, options)
    chosen = {path for block in architecture.blocks for part, path in _linears(block).items() if part in parts}
    model.requires_grad_(False)
    config = LoraConfig(
        r=options.rank,
        lora_alpha=options.rank if options.alpha is None else options.alpha,  # pyright: ignore[reportArgumentType]  (only its annotation wants an int)
        lora_dropout=options.dropout,
        target_modules=[path for path in architecture.linears() if path in chosen],
        bias="none",
    )
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model, adapter_name=ADAPTER)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            if parameter.dtype.itemsize < torch.float32.itemsize:  # 16 bits would round an optimiser's small steps away
                parameter.data = parameter.data.float()
            parameter.requires_grad_(True)


def has_lora(model: PreTrainedModel) -> bool:
    """Whether any linear is wrapped in LoRA."""
    return any(isinstance(module, BaseTunerLayer) for module in model.modules())


@contextmanager
def without_lora(model: PreTrainedModel) -> Generator[None, None, None]:
    """Inside, every LoRA layer gives the output of its frozen linear."""
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
    """Add LoRA to the weights and restore the plain linears; does nothing to a model without LoRA."""
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
