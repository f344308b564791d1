"""Which architecture of llama.cpp hosts which shape, asked before any training."""

import pytest
import torch
from helpers.tiny import layers_for, random_masks, tiny_model
from helpers.tiny_tuning import setting

from tuneprune import export, families, methods
from tuneprune.budget import Budget
from tuneprune.compress import compress
from tuneprune.errors import ConfigError, UnsupportedExport
from tuneprune.export import targets
from tuneprune.export.targets.gguf import architectures
from tuneprune.export.targets.gguf.tensors import _neighbours
from tuneprune.model.loading import skeleton
from tuneprune.structure import spaces
from tuneprune.structure.plan import Plan


def shape_of(variant, space, *, uniform=False):
    model = tiny_model(variant, dtype=torch.float32, **layers_for(space))
    architecture = families.describe(model)
    groups = spaces.build(space, architecture, model)
    plan = Plan.from_masks(random_masks(groups, uniform=uniform), groups)
    return export.Shape.of(compress(model, architecture, groups, plan).config)


@pytest.mark.parametrize(
    ("variant", "uniform", "ragged"),
    [
        ("llama", "llama", "deci"),
        ("mistral", "llama", "deci"),
        ("qwen2", "llama", "deci"),
        ("phi3", "llama", "deci"),
        ("granite", "granite", "deci"),
    ],
)
def test_a_family_is_hosted_where_its_shapes_fit(variant, uniform, ragged):
    assert architectures.choose(shape_of(variant, "width", uniform=True)).name == uniform
    assert architectures.choose(shape_of(variant, "width")).name == ragged


@pytest.mark.parametrize(("variant", "own"), [("qwen2", "qwen2"), ("phi3", "phi3"), ("phi", "phi2")])
def test_fewer_layers_leave_a_family_its_own_architecture(variant, own):
    assert architectures.choose(shape_of(variant, "depth")).name == own


@pytest.mark.parametrize(
    ("variant", "space", "reason"),
    [
        ("llama", "head_dim", "has rotary pairs of each layer's own.*Use space `width` or `depth`"),
        ("llama", "disp", "has layers that read and write parts of the residual stream.*Use space `width`"),
        ("qwen3", "width", "`qwen3` wants equal widths in all layers.*per_layer: uniform.*`openelm` wants tied"),
        ("gemma2", "width", "`gemma2` wants equal widths in all layers"),
        ("mixtral", "experts", "wants one number of experts.*per_layer: uniform"),
        ("phi", "width", "`phi2` wants equal widths"),
        ("smollm3", "depth", "leaves every fourth layer without RoPE"),
    ],
)
def test_what_no_architecture_holds_is_refused(variant, space, reason):
    with pytest.raises(UnsupportedExport, match=reason):
        targets.build("gguf").refuse(shape_of(variant, space))


@pytest.mark.parametrize(
    ("method", "space", "reason"),
    [
        ("slicegpt", "residual", "matrices on the skip connections"),
        ("tomoe", "head_dim", "routers before parts of an MLP|rotary pairs"),
    ],
)
def test_what_a_method_adds_is_refused_before_training(tmp_path, method, space, reason):
    made = setting(tmp_path, space_name=space, lora=False)
    options = {"variant": "skip"} if method == "slicegpt" else {}
    chosen = methods.build({"name": method, **options})
    additions = chosen.adds(made.space)
    shape = export.foresee(skeleton(made.model.config), made.architecture, made.space, Budget(keep=0.8), additions)
    with pytest.raises(UnsupportedExport, match=reason):
        targets.build("gguf:type=q8_0").refuse(shape)


def test_biases_go_where_there_is_room(tmp_path):
    made = setting(tmp_path, lora=False)
    shape = export.foresee(skeleton(made.model.config), made.architecture, made.space, Budget(keep=0.8), {"biases"})
    assert architectures.choose(shape).name in ("llama", "deci")


def test_unknown_types_are_refused():
    with pytest.raises(ConfigError, match=r"export gguf:type=q4: type: Input should be 'f32', 'f16'"):
        targets.build("gguf:type=q4")


def test_pairs_become_neighbours_and_the_rest_stays():
    rows = torch.arange(2 * 6)[:, None]  # two heads of six, of which RoPE turns four: pairs (0, 2) and (1, 3)
    assert _neighbours(rows, 2, 4)[:, 0].tolist() == [0, 2, 1, 3, 4, 5, 6, 8, 7, 9, 10, 11]
