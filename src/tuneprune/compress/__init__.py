"""From a plan to a physically smaller model."""

from tuneprune.compress.cut import compress, cut
from tuneprune.compress.rewrite import rewrite
from tuneprune.compress.streaming import Streamed, stream
from tuneprune.compress.tensor_plan import Part, rescaled_weights

__all__ = ["Part", "Streamed", "compress", "cut", "rescaled_weights", "rewrite", "stream"]
