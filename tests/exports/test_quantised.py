"""Quantised folders load with transformers, and no weight is further from its float value than its format rounds."""

from importlib.util import find_spec

import pytest
from exports.matrix import cell
from exports.toys import LAYOUTS, MAIN, pretrained, sweep, toy
from helpers.tiny import CASES, MIXTURES
from transformers import AutoConfig

from tuneprune import export
from tuneprune.compress.shape import Shape
from tuneprune.errors import TunePruneError, UnsupportedExport
from tuneprune.export import targets
from tuneprune.export.targets.quantised import target as quantised

QUICK = [("bnb", family, "width", "ragged") for family in MAIN]
QUICK += [("bnb", "llama", space, "ragged") for space in ("head_dim", "disp", "residual", "depth")]
QUICK += [("bnb", "qwen2", "width", "uniform"), ("torchao", "llama", "width", "ragged")]
QUICK += [("torchao", "phi3", "width", "uniform")]
OTHERS = [
    case
    for case in ((target, *place, layout) for target in ("bnb", "torchao") for place in CASES for layout in LAYOUTS)
    if case not in QUICK and case[2] != "experts"
]
ALIGNED = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 2, "num_key_value_heads": 2}
"""Heads of 64 features, so that NF4's blocks divide all widths where channels are kept in multiples of 64."""


def require(target: str) -> None:
    package = targets.registry()[target].packages[0]
    if find_spec(package) is None:  # imported, it would be slow and loud
        pytest.skip(f"{package} is not installed (extra `quantise`)")


def proof_of(source, out, name) -> dict:
    require(name.partition(":")[0])
    proof = export.convert(source, targets.build(name), out, export.take_reference(source))["proof"]
    assert proof["status"] == "run"
    assert proof["weights"]["worst_error_in_steps"] <= 1
    assert proof["cached_logits"]["max_rel_diff"] <= quantised.CACHE_TOLERANCE
    return proof


@pytest.mark.parametrize(("target", "family", "space", "layout"), QUICK)
def test_int8_weights_load(tmp_path, target, family, space, layout):
    proof = proof_of(toy(tmp_path / "model", family, space, layout), tmp_path / "out", target)
    assert proof["logits"]["mean_rel_diff"] < 0.05
    cell(target, family, space, layout, "run")


@pytest.mark.slow
@pytest.mark.parametrize(("target", "family", "space", "layout"), sweep(OTHERS))
def test_int8_weights_of_every_family_load(tmp_path, target, family, space, layout):
    proof_of(toy(tmp_path / "model", family, space, layout), tmp_path / "out", target)
    cell(target, family, space, layout, "run")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", MIXTURES)
@pytest.mark.parametrize("target", ["bnb", "torchao"])
def test_mixtures_are_refused(tmp_path, target, family, layout):
    config = AutoConfig.from_pretrained(toy(tmp_path / "model", family, "experts", layout))
    with pytest.raises(UnsupportedExport, match="experts in packed tensors"):
        targets.build(target).refuse(Shape.of(config))
    cell(target, family, "experts", layout, "impossible", "experts are packed in tensors that the library leaves as is")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nf4_weights_load(tmp_path, layout):
    source = toy(tmp_path / "model", "llama", "width", layout, step=64, **ALIGNED)
    proof = proof_of(source, tmp_path / "out", "bnb:type=nf4")
    assert proof["weights"]["layers"] == 14
    assert proof["bytes_on_disk"]["quantised"] < 0.3 * proof["bytes_on_disk"]["float"]


def test_int8_activations_load(tmp_path):
    proof_of(toy(tmp_path / "model", "qwen3", "width", "ragged"), tmp_path / "out", "torchao:type=int8_dynamic")


def test_matrices_on_the_residual_stream_stay_as_they_are(tmp_path):
    source = toy(tmp_path / "model", "llama", "residual", "ragged", adds="skip matrices")
    assert proof_of(source, tmp_path / "out", "bnb")["weights"]["layers"] == 14


def test_a_pretrained_model_keeps_its_perplexity(tmp_path):
    proof = proof_of(pretrained(tmp_path / "model", "stories260K", "ragged"), tmp_path / "out", "bnb")
    assert 0.97 < proof["perplexity"]["ratio"] < 1.03
    assert proof["bytes_on_disk"]["quantised"] < 0.6 * proof["bytes_on_disk"]["float"]


def test_weights_of_another_model_fail_the_proof(tmp_path):
    require("bnb")
    source = toy(tmp_path / "model", "llama", "width", "uniform")
    other = export.take_reference(toy(tmp_path / "other", "llama", "width", "uniform", seed=1))
    with pytest.raises(TunePruneError, match="times as far from the float ones as their format rounds"):
        export.convert(source, targets.build("bnb"), tmp_path / "out", other)
    assert not (tmp_path / "out").exists()
