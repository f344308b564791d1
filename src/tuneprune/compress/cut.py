"""Physical removal: cut every weight once, in dense coordinates, and rebuild what has a new shape."""

from typing import Any

import torch
from accelerate import init_empty_weights
from transformers import AutoModelForCausalLM, PreTrainedModel

from tuneprune.compress.modeling_pruned import equal_layers, resize, resize_head
from tuneprune.compress.recipe import Recipe, draw
from tuneprune.compress.rewrite import rewrite
from tuneprune.structure.architecture import Architecture
from tuneprune.structure.plan import Plan
from tuneprune.structure.space import PruningSpace


def compress(model: PreTrainedModel, architecture: Architecture, space: PruningSpace, plan: Plan) -> PreTrainedModel:
    """The smaller model that the plan makes of a dense one: `rewrite`, then `cut`. Consumes `model`.

    Raises:
        PlanMismatch: the plan belongs to another space.
    """
    return cut(rewrite(model, architecture, space, plan), architecture, space, plan)


@torch.no_grad()
def cut(model: PreTrainedModel, architecture: Architecture, space: PruningSpace, plan: Plan) -> PreTrainedModel:
    """The rewritten model without what the plan removes. Consumes `model`; LoRA must be merged before.

    Uniform widths that a stock class can hold come back as that class; ragged ones as the family's class with
    `config.pruned`, which `modeling_pruned.py` reads.

    Raises:
        PlanMismatch: the plan belongs to another space, or drops layers of a model that no stock class holds.
    """
    recipe = draw(model, architecture, space, plan)
    dense, device = model.state_dict(), model.device
    tensors = {name: part.of(dense[part.source]) for name, part in recipe.parts.items()}
    tensors |= {name: tensor.to(device) for name, tensor in recipe.own.items()}
    small: Any = reshape(model, recipe)
    small.load_state_dict(tensors, assign=True)
    small.tie_weights()
    return small.to(device)


def reshape(model: PreTrainedModel, recipe: Recipe) -> PreTrainedModel:
    """The smaller model before its weights are loaded, with the old generation settings. Consumes `model`.

    A stock model is built in its precision, not cast to it: the frequencies of RoPE stay in float32, as when the model
    is loaded. Its parameters are on the meta device, its buffers are not: nothing would fill in those that no
    checkpoint holds.
    """
    with init_empty_weights(include_buffers=False), equal_layers(recipe.config):
        small: Any = AutoModelForCausalLM.from_config(recipe.config, dtype=model.dtype)
    if not recipe.is_stock:
        with init_empty_weights(include_buffers=False):
            resize(small)
            resize_head(small)
    small.generation_config = model.generation_config
    return small.train(model.training)
