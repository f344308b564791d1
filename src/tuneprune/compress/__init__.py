"""From a plan to a physically smaller model."""

from tuneprune.compress.compressor import compress, cut
from tuneprune.compress.rewrite import rewrite
from tuneprune.compress.streaming import Streamed, stream

__all__ = ["Streamed", "compress", "cut", "rewrite", "stream"]
