"""From a plan to a physically smaller model."""

from tuneprune.compress.compressor import compress, cut
from tuneprune.compress.recipe import Part, rescaled_weights
from tuneprune.compress.rewrite import rewrite
from tuneprune.compress.streaming import Streamed, stream

__all__ = ["Part", "Streamed", "compress", "cut", "rescaled_weights", "rewrite", "stream"]
