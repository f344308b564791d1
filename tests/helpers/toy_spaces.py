"""Pruning spaces of tiny models."""

from helpers.tiny import layers_for, tiny_model
from tuneprune import families
from tuneprune.structure import spaces


def tiny_space(variant="llama", name="width", **changes):
    model = tiny_model(variant, **layers_for(name) | changes)
    return spaces.build(name, families.describe(model), model)
