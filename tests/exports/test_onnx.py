"""onnxruntime computes what transformers computes, with and without cache and padding, for every family and space."""

import json
import re
from pathlib import Path

import pytest
from exports.matrix import cell
from exports.toys import LAYOUTS, MAIN, pretrained, sweep, toy
from helpers.tiny import CASES
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from tuneprune import export
from tuneprune.compress.shape import Shape
from tuneprune.errors import TunePruneError
from tuneprune.export import targets

for package in ("onnxscript", "onnxruntime"):
    pytest.importorskip(package, reason="needs the extra `onnx`")
onnx = pytest.importorskip("onnx", reason="needs the extra `onnx`")

QUICK = [(family, "width", layout) for family in MAIN for layout in LAYOUTS]
QUICK += [("llama", space, "ragged") for space in ("head_dim", "disp", "residual", "depth")]
QUICK += [("mixtral", "experts", "ragged"), ("gemma2", "width", "ragged")]
OTHERS = [(*case, layout) for case in CASES for layout in LAYOUTS if (*case, layout) not in QUICK]
ADDITIONS = [("width", "biases"), ("width", "routers"), ("residual", "skip matrices")]


def converted(source: Path, out: Path, name: str = "onnx") -> dict:
    return export.convert(source, targets.build(name), out, export.take_reference(source))


def check_run(found: dict) -> None:
    proof = found["proof"]
    assert proof["status"] == "run"
    for kind in ("logits", "cached_logits", "batched_logits"):
        assert proof[kind]["max_rel_diff"] <= 1e-3
    assert proof["greedy_equal"]
    assert proof["padded_greedy_equal"]


@pytest.mark.parametrize(("family", "space", "layout"), QUICK)
def test_a_pruned_model_runs(tmp_path, family, space, layout):
    check_run(converted(toy(tmp_path / "model", family, space, layout), tmp_path / "onnx"))
    cell("onnx", family, space, layout, "run")


@pytest.mark.slow
@pytest.mark.parametrize(("family", "space", "layout"), sweep(OTHERS))
def test_every_family_runs_in_every_space(tmp_path, family, space, layout):
    check_run(converted(toy(tmp_path / "model", family, space, layout), tmp_path / "onnx"))
    cell("onnx", family, space, layout, "run")


@pytest.mark.parametrize(("space", "adds"), ADDITIONS)
def test_what_methods_add_runs(tmp_path, space, adds):
    check_run(converted(toy(tmp_path / "model", "llama", space, "ragged", adds=adds), tmp_path / "onnx"))


def test_half_precision_is_half_the_size(tmp_path):
    source = toy(tmp_path / "model", "llama", "width", "ragged")
    found = converted(source, tmp_path / "onnx", "onnx:dtype=f16")
    assert found["proof"]["logits"]["max_rel_diff"] <= found["proof"]["tolerance"] == 0.01
    assert found["files"]["model.onnx.data"] < 0.55 * export.weight_bytes(source)


@pytest.mark.parametrize("name", ["stories260K", "babyllama-char361-1M"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_pretrained_models_run(tmp_path, name, layout):
    check_run(converted(pretrained(tmp_path / "model", name, layout), tmp_path / "onnx"))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return toy(tmp_path_factory.mktemp("source") / "model", "qwen2", "width", "ragged")


@pytest.fixture(scope="module")
def folder(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("target") / "onnx"
    export.convert(source, targets.build("onnx"), folder, None)
    return folder


def test_the_loop_of_the_page_says_what_transformers_says(source, folder):
    page = Path(__file__).parents[2] / "docs" / "exports" / "onnx.md"
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf8"), flags=re.DOTALL)
    scope: dict = {}
    exec(code, scope)
    reference = export.take_reference(source)
    tokenizer = AutoTokenizer.from_pretrained(source)
    prompt = tokenizer.decode(reference.probe.prompt_ids)
    assert tokenizer(prompt)["input_ids"] == reference.probe.prompt_ids.tolist()
    assert scope["generate"](folder, prompt, 32) == tokenizer.decode(reference.greedy_ids)


def test_names_that_other_tools_expect_and_no_paths_of_this_machine(source, folder):
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    caches = [f"{layer}.{kind}" for layer in (0, 1) for kind in ("key", "value")]
    assert [value.name for value in graph.input] == [
        *("input_ids", "attention_mask", "position_ids"),
        *(f"past_key_values.{cache}" for cache in caches),
    ]
    assert [value.name for value in graph.output] == ["logits", *(f"present.{cache}" for cache in caches)]
    io = json.loads((folder / "io.json").read_text())
    assert io["inputs"]["input_ids"] == {"dtype": "int64", "shape": ["batch_size", "sequence_length"]}
    heads = [layer.num_kv_heads for layer in Shape.of(AutoConfig.from_pretrained(source)).layers]
    assert [io["inputs"][f"past_key_values.{index}.key"]["shape"][1] for index in (0, 1)] == heads
    assert str(Path(export.__file__).parents[2]).encode() not in (folder / "model.onnx").read_bytes()
    assert GenerationConfig.from_pretrained(folder).eos_token_id == io["eos_token_id"] == 2


def test_without_onnxruntime_the_graph_is_checked(source, folder, monkeypatch):
    target, shape = targets.build("onnx"), Shape.of(AutoConfig.from_pretrained(source))
    monkeypatch.setattr(type(target), "runtime", ("no_such_runtime",))
    proof = target.prove(folder, export.take_reference(source), shape)
    assert proof == {"status": "structure", "why": "no_such_runtime is not installed (extra `onnx`)"}


def test_a_graph_that_says_something_else_fails_its_proof(tmp_path, source, folder):
    target, shape = targets.build("onnx"), Shape.of(AutoConfig.from_pretrained(source))
    other = export.take_reference(toy(tmp_path / "other", "qwen2", "width", "uniform"))
    with pytest.raises(TunePruneError, match="onnxruntime's logits differ by"):
        target.prove(folder, other, shape)
