"""From a plan to a physically smaller model."""

from tuneprune.compress.compressor import compress

__all__ = ["compress"]
