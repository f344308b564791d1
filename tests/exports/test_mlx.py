"""mlx-lm computes what transformers computes, for the families and spaces that one of its classes holds."""

import json

import pytest
import torch
from exports.matrix import cell
from helpers.tiny import CASES, layers_for, random_masks, tiny_model
from helpers.toy_tokenizer import byte_tokenizer
from transformers import AutoTokenizer

from tuneprune import export, families
from tuneprune.compress import compress
from tuneprune.errors import TunePruneError, UnsupportedExport
from tuneprune.export import targets
from tuneprune.structure import spaces
from tuneprune.structure.plan import Plan

pytest.importorskip("mlx", reason="needs the extra `mlx`")
pytest.importorskip("mlx_lm", reason="needs the extra `mlx`")

CHANGES = {"mistral": {"sliding_window": None}}
RAGGED = ("llama", "mistral", "qwen3", "phi3")
MAIN = ("llama", "llama3", "mistral", "qwen2", "qwen3", "phi3", "seed_oss")


def save(folder, family, space_name, layout, **changes):
    changes = {"vocab_size": 300} | layers_for(space_name) | CHANGES.get(family, {}) | changes
    model = tiny_model(family, dtype=torch.float32, **changes)
    architecture = families.describe(model)
    space = spaces.build(space_name, architecture, model)
    plan = Plan.from_masks(random_masks(space, uniform=layout == "uniform"), space)
    export.write(compress(model, architecture, space, plan), byte_tokenizer(), folder)
    return folder


def converted(source, out):
    return export.convert(source, targets.build("mlx"), out, export.take_reference(source))


def is_held(family, space, layout):
    if space in ("head_dim", "disp"):
        return False
    return layout == "uniform" or space in ("depth", "residual") or family in RAGGED


@pytest.mark.parametrize("layout", ["uniform", "ragged"])
@pytest.mark.parametrize(("family", "space"), [case for case in CASES if case[0] in MAIN])
def test_mlx_says_what_transformers_says(tmp_path, family, space, layout):
    source = save(tmp_path / "model", family, space, layout)
    if is_held(family, space, layout):
        proof = converted(source, tmp_path / "mlx")["proof"]
        assert proof["status"] == "run"
        assert proof["logits"]["max_rel_diff"] <= 1e-3
        assert proof["greedy_equal"]
        assert AutoTokenizer.from_pretrained(tmp_path / "mlx")("the cat")["input_ids"]
        cell("mlx", family, space, layout, "run")
        return
    with pytest.raises(UnsupportedExport) as refusal:
        converted(source, tmp_path / "mlx")
    cell("mlx", family, space, layout, "impossible", str(refusal.value).removeprefix("mlx: "))


@pytest.mark.parametrize("tied", [True, False])
def test_uneven_layers_stand_under_the_names_of_openelm(tmp_path, tied):
    source = save(tmp_path / "model", "qwen3", "width", "ragged", tie_word_embeddings=tied)
    assert converted(source, tmp_path / "mlx")["proof"]["greedy_equal"]
    config = json.loads((tmp_path / "mlx" / "config.json").read_text())
    assert (config["model_type"], config["share_input_output_layers"]) == ("openelm", tied)


def test_a_window_that_mlx_ignores_is_refused(tmp_path):
    model = tiny_model("mistral", dtype=torch.float32, vocab_size=300, sliding_window=8)
    export.write(model, byte_tokenizer(), tmp_path / "model")
    with pytest.raises(UnsupportedExport, match="sliding window of 8"):
        converted(tmp_path / "model", tmp_path / "mlx")


def test_other_logits_leave_nothing_behind(tmp_path):
    source = save(tmp_path / "model", "llama", "width", "ragged")
    reference = export.take_reference(source)
    reference.probe.logits[0, 0, 0] += 10
    with pytest.raises(TunePruneError, match="computes other logits"):
        export.convert(source, targets.build("mlx"), tmp_path / "mlx", reference)
    assert not (tmp_path / "mlx").exists()
