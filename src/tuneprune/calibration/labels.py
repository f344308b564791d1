"""The label that stands for none. Apart from batches, so that encoding text does not import torch."""

IGNORED = -100
"""The label of a token that no loss is taken on."""
