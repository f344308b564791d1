"""ToMoE."""

from tuneprune.methods.tomoe.tomoe import Tomoe

__all__ = ["Tomoe"]
