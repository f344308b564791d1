"""From a plan to a physically smaller model."""

from tuneprune.compress.compressor import compress, cut
from tuneprune.compress.rewrite import rewrite

__all__ = ["compress", "cut", "rewrite"]
