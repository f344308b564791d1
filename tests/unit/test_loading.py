import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import logits, tiny_model
from tiny_runs import make_adapter, save_model

from tuneprune.errors import ConfigError
from tuneprune.loading import cast_weights, load_model
from tuneprune.recovering import load_smaller

CPU = torch.device("cpu")


def poison(path, name, number):
    """One number of a tensor in a safetensors file, of the first whose name begins so."""
    tensors = load_file(path)
    next(tensor for key, tensor in tensors.items() if key.startswith(name)).view(-1)[0] = number
    save_file(tensors, path, {"format": "pt"})


def test_a_way_through_the_stored_precision_changes_nothing_that_the_weights_can_hold():
    model = tiny_model("llama3", dtype=torch.float32)
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()
    before = logits(model)
    assert {parameter.dtype for parameter in cast_weights(model, torch.bfloat16).parameters()} == {torch.bfloat16}
    assert torch.equal(logits(cast_weights(model, torch.float32)), before)  # RoPE's frequencies were not rounded
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize(
    "load", [lambda folder: load_model(str(folder), None, CPU), lambda f: load_smaller(str(f), CPU)]
)
@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_model_whose_weights_are_not_finite_is_refused_by_the_name_of_one(tmp_path, load, number):
    poison(save_model(tmp_path) / "model.safetensors", "model.layers.1.mlp.up_proj.weight", number)
    with pytest.raises(ConfigError, match=r"`model.layers.1.mlp.up_proj.weight` of .* holds NaN or infinite"):
        load(str(tmp_path))


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_an_adapter_whose_weights_are_not_finite_is_refused(tmp_path):
    model, adapter = save_model(tmp_path / "model"), tmp_path / "adapter"
    make_adapter(adapter)
    poison(adapter / "adapter_model.safetensors", "", math.nan)
    with pytest.raises(ConfigError, match="holds NaN or infinite"):
        load_model(str(model), str(adapter), CPU)
