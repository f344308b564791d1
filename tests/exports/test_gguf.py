"""llama.cpp computes what transformers computes, for every family and space that one of its architectures holds."""

import os
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from exports.gguf_files import TOLERANCE, check_run, converted, save
from exports.matrix import cell
from helpers.tiny import CASES, tiny_model
from helpers.toy_tokenizer import byte_tokenizer

from tuneprune import export, families
from tuneprune.errors import TunePruneError, UnsupportedExport
from tuneprune.export import targets
from tuneprune.structure.edits import Bias

pytestmark = pytest.mark.skipif(find_spec("llama_cpp") is None, reason="needs the extra `gguf`")

ROOT = Path(__file__).resolve().parents[2]
MODELS = Path(os.environ.get("TUNEPRUNE_MODELS", ROOT.parent / "shared" / "models"))
MAIN = ("llama", "mistral", "qwen2", "qwen3", "phi3")
SQUARE = ("olmo2", "starcoder2", "phi", "gpt_neox")
UNIFORM_ONLY = (*SQUARE, "qwen3", "smollm3", "gemma2", "gemma3", "mixtral", "qwen3_moe")
ALL_CASES = [(*case, layout) for case in CASES for layout in ("uniform", "ragged")]


def is_held(family: str, space: str, layout: str) -> bool:
    """Whether some architecture of llama.cpp holds the result of a plan that takes some of everything."""
    if space in ("head_dim", "disp") or (space, family) == ("residual", "olmo2"):
        return False
    if space == "depth":
        return family != "smollm3"  # of four layers the one without RoPE is no longer the last
    if space == "width" and family in SQUARE:
        return False
    return layout == "uniform" or space == "residual" or family not in UNIFORM_ONLY


def check_case(tmp_path: Path, family: str, space: str, layout: str) -> None:
    source = save(tmp_path / "model", family, space, layout)
    if is_held(family, space, layout):
        # llama.cpp reads GELU, which Gemma has, from a table in float16
        check_run(converted(source, tmp_path / "gguf"), 5e-3 if family.startswith("gemma") else TOLERANCE)
        cell("gguf", family, space, layout, "run")
        return
    with pytest.raises(UnsupportedExport) as refusal:
        converted(source, tmp_path / "gguf")
    why = re.sub(r"\b\d+\b", "n", str(refusal.value).removeprefix("GGUF: "))  # widths are those of tiny models
    cell("gguf", family, space, layout, "impossible", why)


@pytest.mark.parametrize(("family", "space", "layout"), [case for case in ALL_CASES if case[0] in MAIN])
def test_a_pruned_model_runs(tmp_path, family, space, layout):
    check_case(tmp_path, family, space, layout)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "space", "layout"), [case for case in ALL_CASES if case[0] not in MAIN])
def test_every_family_runs_where_it_can(tmp_path, family, space, layout):
    check_case(tmp_path, family, space, layout)


@pytest.mark.parametrize("family", ["qwen3", "llama", "qwen2"])
def test_tied_embeddings(tmp_path, family):
    source = save(tmp_path / "model", family, "width", "ragged", tie_word_embeddings=True)
    found = converted(source, tmp_path / "gguf")
    check_run(found)
    assert found["details"]["architecture"] == ("openelm" if family == "qwen3" else "deci")


ROPE = {
    "linear": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
    "yarn": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16},
    "partial": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
}


@pytest.mark.parametrize("layout", ["uniform", "ragged"])
@pytest.mark.parametrize("kind", ["linear", "yarn"])
def test_scaled_rope(tmp_path, kind, layout):
    check_run(converted(save(tmp_path / "m", "qwen2", "width", layout, rope_parameters=ROPE[kind]), tmp_path / "gguf"))


@pytest.mark.parametrize("space", ["width", "depth"])
def test_rope_over_a_part_of_the_head(tmp_path, space):
    source = save(tmp_path / "model", "phi3", space, "ragged", rope_parameters=ROPE["partial"])
    found = converted(source, tmp_path / "gguf")
    check_run(found)
    assert found["details"]["architecture"] == {"width": "deci", "depth": "phi3"}[space]


@pytest.mark.parametrize("space", ["width", "depth"])
def test_long_rope(tmp_path, space):
    factors = {"short_factor": [1.0, 1.5, 2.0, 3.0], "long_factor": [2.0, 3.0, 4.0, 9.0]}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 512, **factors}
    source = save(tmp_path / "m", "phi3", space, "ragged", rope_parameters=rope, max_position_embeddings=1024)
    check_run(converted(source, tmp_path / "gguf"))


@pytest.mark.parametrize(("family", "layout"), [("llama", "uniform"), ("qwen2", "ragged"), ("granite", "ragged")])
def test_added_biases(tmp_path, family, layout):
    model = tiny_model(family, vocab_size=300)
    draw = torch.Generator().manual_seed(3)
    mlps = [block.mlp.down for block in families.describe(model).blocks]
    edits = [Bias(path, torch.randn(model.config.hidden_size, generator=draw)) for path in mlps]
    check_run(converted(save(tmp_path / "model", family, "width", layout, edits=edits), tmp_path / "gguf"))


def test_weights_in_several_files(tmp_path):
    source = save(tmp_path / "model", "llama", "width", "ragged")
    export.write(export.load_exported(source), byte_tokenizer(), tmp_path / "sharded", max_shard_size="20KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    check_run(converted(tmp_path / "sharded", tmp_path / "gguf"))


@pytest.mark.parametrize("name", ["babyllama-char361-1M", "stories260K"])
def test_shared_models(tmp_path, name):
    if not MODELS.is_dir():
        pytest.skip(f"no real checkpoints at {MODELS}; set TUNEPRUNE_MODELS to test them")
    check_run(converted(MODELS / name, tmp_path / "gguf"))


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", "q8_0", "q4_k_m", "q6_k"])
def test_the_embedded_model_in_every_type(tmp_path, kind):
    found = converted(ROOT / "embedded" / "base", tmp_path / "gguf", f"gguf:type={kind}")
    proof = found["proof"]
    assert proof["tokens"]["differ"] == []
    assert proof["tokens"]["special_tokens_equal"]
    exact = proof if kind == "f32" else proof["in_float32"]
    assert exact["logits"]["max_rel_diff"] <= TOLERANCE
    assert exact["greedy_equal"]
    assert proof["logits"]["top1_agreement"] > 0.8
    sizes = {"f32": 4, "f16": 2, "bf16": 2, "q8_0": 1.07, "q6_k": 0.83, "q4_k_m": 0.62}  # bytes a weight
    weights = export.weight_bytes(ROOT / "embedded" / "base") / 2
    assert found["files"][f"model-{kind}.gguf"] == pytest.approx(weights * sizes[kind], rel=0.08)


def test_widths_that_fill_no_block_are_told(tmp_path):
    found = converted(
        save(tmp_path / "model", "llama", "width", intermediate_size=64), tmp_path / "a", "gguf:type=q8_0"
    )
    assert found["details"]["other_types"] == {"F16": [f"blk.{layer}.attn_output.weight" for layer in (0, 1)]}
    found = converted(ROOT / "embedded" / "base", tmp_path / "b", "gguf:type=q4_k_m")
    assert found["details"]["other_types"] == {}


def test_a_window_that_llama_cpp_does_not_know_limits_the_context(tmp_path):
    source = save(tmp_path / "model", "mistral", "width", "ragged", sliding_window=8)
    found = converted(source, tmp_path / "gguf")
    assert "knows no sliding window, so beyond 8 tokens" in found["details"]["notes"][0]
    assert found["proof"]["logits"]["tokens"] == 16  # two rows, cut to the context
    assert found["proof"]["greedy_equal"] is None


def test_what_llama_cpp_says_of_a_broken_file_is_the_error(tmp_path, monkeypatch):
    source = save(tmp_path / "model", "llama", "width")
    monkeypatch.setattr("tuneprune.export.targets.gguf.metadata._norms", lambda *arguments: None)
    with pytest.raises(TunePruneError, match=r"key not found in model: llama\.attention\.layer_norm_rms_epsilon"):
        converted(source, tmp_path / "gguf")
    assert not (tmp_path / "gguf").exists()


def test_a_file_that_computes_something_else_is_not_published(tmp_path, monkeypatch):
    source = save(tmp_path / "model", "llama", "width")
    monkeypatch.setattr("tuneprune.export.targets.gguf.rope.settings", lambda config: {"rope_theta": 77.0})
    with pytest.raises(TunePruneError, match="computes other logits than the exported folder"):
        converted(source, tmp_path / "gguf")
    assert not (tmp_path / "gguf").exists()


def test_without_llama_cpp_the_tensors_are_checked(tmp_path, monkeypatch):
    monkeypatch.setattr(targets.registry()["gguf"], "runtime", ("no_such_package",))
    found = converted(save(tmp_path / "model", "phi3", "width", "ragged"), tmp_path / "gguf", "gguf")
    assert found["proof"] == {
        "status": "structure",
        "why": "no_such_package is not installed (extra `gguf`)",
        "tensors": 3 + 2 * 9,
    }
    with pytest.raises(UnsupportedExport, match=r"written by llama\.cpp: no_such_package is not installed"):
        converted(tmp_path / "model", tmp_path / "gguf", "gguf:type=q4_k_m")
