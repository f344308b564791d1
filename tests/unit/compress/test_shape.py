"""The shape read from a config is that of the weights, and the predicted shape is one that the method can make."""

import copy

import pytest
import torch
from helpers.precision import FLOAT32_LOGITS, within
from helpers.tiny import CASES, layers_for, random_masks, tiny_model
from helpers.tiny_tuning import setting
from helpers.toy_tokenizer import tiny_tokenizer

from tuneprune import export, families, methods
from tuneprune.budget import Budget
from tuneprune.compress import compress
from tuneprune.compress.shape import LayerShape, Shape
from tuneprune.model.loading import skeleton
from tuneprune.structure import spaces
from tuneprune.structure.architecture import Experts
from tuneprune.structure.plan import Plan


def small_model(variant, space_name, *, uniform=False, dtype=torch.float32):
    model = tiny_model(variant, dtype=dtype, **layers_for(space_name))
    architecture = families.describe(model)
    space = spaces.build(space_name, architecture, model)
    return compress(model, architecture, space, Plan.from_masks(random_masks(space, uniform=uniform), space))


@pytest.mark.parametrize("uniform", [True, False])
@pytest.mark.parametrize(("variant", "space_name"), CASES)
def test_the_shape_is_that_of_the_weights(variant, space_name, uniform):
    small = small_model(variant, space_name, uniform=uniform)
    shape = Shape.of(small.config)
    assert shape.hidden == small.get_input_embeddings().weight.shape[1]
    modules = dict(small.named_modules())
    for block, layer in zip(shape.architecture.blocks, shape.layers, strict=True):
        attention, mlp = block.attention, block.feed_forward
        out = modules[attention.out].weight.shape[1]
        assert out == layer.num_heads * layer.v_dim
        rows = sum({name: modules[name].weight.shape[0] for name in attention.inputs}.values())
        assert rows == layer.num_heads * layer.qk_dim + layer.num_kv_heads * (layer.qk_dim + layer.v_dim)
        if isinstance(mlp, Experts):
            assert layer.num_experts == len(small.state_dict()[mlp.params[0]])
        else:
            assert layer.mlp_width == modules[mlp.down].weight.shape[1]


@pytest.mark.parametrize(("variant", "space_name"), [case for case in CASES if case[1] != "depth"])
def test_an_exported_folder_is_loaded_without_its_code(tmp_path, variant, space_name):
    small = small_model(variant, space_name)
    export.write(small, tiny_tokenizer(), tmp_path / "model")
    loaded = export.load_exported(tmp_path / "model")
    ids = torch.arange(3, 15)[None]
    with torch.no_grad():  # experts may be computed in another way: by each, or grouped
        expected = small.eval()(input_ids=ids).logits
        torch.testing.assert_close(loaded(input_ids=ids).logits, expected, **within(FLOAT32_LOGITS))


def test_oddities_are_named():
    assert Shape.of(small_model("llama", "head_dim").config).oddities == {"rotary pairs"}
    assert Shape.of(small_model("llama", "disp").config).oddities == {"parts of the stream"}
    assert not Shape.of(small_model("llama", "width").config).oddities


@pytest.mark.parametrize("per_layer", ["free", "uniform"])
@pytest.mark.parametrize("space_name", ["width", "head_dim", "disp", "residual", "depth", "experts"])
def test_the_foreseen_shape_is_one_that_comes_out(tmp_path, space_name, per_layer):
    made = setting(tmp_path, space_name=space_name, lora=False)
    method, budget = methods.build({"name": "random"}), Budget(keep=0.8, per_layer=per_layer)
    foreseen = export.foresee(skeleton(made.model.config), made.architecture, made.space, budget)
    plan = method.begin(made.subject, budget).plan()
    found = Shape.of(compress(copy.deepcopy(made.model), made.architecture, made.space, plan).config)
    assert foreseen.is_ragged == found.is_ragged
    assert foreseen.oddities == found.oddities
    assert len(foreseen.layers) == len(found.layers)
    if per_layer == "uniform":
        assert all(isinstance(layer, LayerShape) for layer in foreseen.layers)
        assert len(set(foreseen.layers)) == len(set(found.layers)) == 1


def test_what_a_method_adds_is_foreseen(tmp_path):
    made = setting(tmp_path, lora=False)
    found = export.foresee(skeleton(made.model.config), made.architecture, made.space, Budget(keep=0.8), {"biases"})
    assert found.oddities == {"biases"}
