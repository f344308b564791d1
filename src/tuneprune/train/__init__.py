"""The one training loop, LoRA, and checkpoints."""

from tuneprune.train.config import LoraOptions, TuneConfig
from tuneprune.train.loop import Tuner, TuneResult
from tuneprune.train.lora import inject_lora, lora_parts, make_trainable, merge_lora

__all__ = [
    "LoraOptions",
    "TuneConfig",
    "TuneResult",
    "Tuner",
    "inject_lora",
    "lora_parts",
    "make_trainable",
    "merge_lora",
]
