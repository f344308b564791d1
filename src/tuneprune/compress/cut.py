"""Physical removal: cut every tensor of a rewritten dense model once, and load the parts into a smaller model."""

from typing import Any

import torch
from accelerate import init_empty_weights
from transformers import AutoModelForCausalLM, PreTrainedModel

from tuneprune.compress.modeling_pruned import equal_layers, resize, resize_head
from tuneprune.compress.rewrite import rewrite
from tuneprune.compress.tensor_plan import TensorPlan, plan_tensors
from tuneprune.structure.architecture import Architecture
from tuneprune.structure.plan import Plan
from tuneprune.structure.space import PruningSpace


def compress(model: PreTrainedModel, architecture: Architecture, space: PruningSpace, plan: Plan) -> PreTrainedModel:
    """Apply a plan to a dense model: `rewrite`, then `cut`. Consumes `model`.

    Raises:
        PlanMismatch: the plan belongs to another space.
    """
    return cut(rewrite(model, architecture, space, plan), architecture, space, plan)


@torch.no_grad()
def cut(model: PreTrainedModel, architecture: Architecture, space: PruningSpace, plan: Plan) -> PreTrainedModel:
    """The rewritten model without what the plan removes. Consumes `model`; LoRA must be merged before.

    The result is a model of a stock class if one can hold its widths, otherwise the family's class resized by
    `modeling_pruned.py`, which reads `config.pruned`.

    Raises:
        PlanMismatch: the plan belongs to another space, or drops layers of a model that no stock class can hold.
    """
    planned = plan_tensors(model, architecture, space, plan)
    dense, device = model.state_dict(), model.device
    tensors = {name: part.of(dense[part.source]) for name, part in planned.parts.items()}
    tensors |= {name: tensor.to(device) for name, tensor in planned.added.items()}
    small: Any = reshape(model, planned)
    small.load_state_dict(tensors, assign=True)
    small.tie_weights()
    return small.to(device)


def reshape(model: PreTrainedModel, planned: TensorPlan) -> PreTrainedModel:
    """The smaller model before its weights are loaded, with the old generation settings. Consumes `model`.

    A stock model is built in its precision, not cast to it, so that the frequencies of RoPE stay in float32, as they do
    when a model is loaded. Parameters are on the meta device, but buffers are not: those that are not stored in a
    checkpoint would never get values.
    """
    with init_empty_weights(include_buffers=False), equal_layers(planned.config):
        small: Any = AutoModelForCausalLM.from_config(planned.config, dtype=model.dtype)
    if not planned.is_stock:
        with init_empty_weights(include_buffers=False):
            resize(small)
            resize_head(small)
    small.generation_config = model.generation_config
    return small.train(model.training)
