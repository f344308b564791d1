"""Exports that the model, the run or the environment does not allow."""

import json
import shutil

import pytest
from refusals import assert_refused, set_to

HEAD_DIM = {"space": "head_dim", "export": ["hf", "gguf"]}
UNALIGNED = {"export": ["hf", "bnb:type=nf4"]}


def changed(**content):
    return lambda case: case.content.update(content)


@pytest.fixture
def with_packages(monkeypatch):
    """As if every package of every target were installed, or none."""
    return lambda there: monkeypatch.setattr(
        "tuneprune.export.targets.base.find_spec", lambda name: object() if there else None
    )


CASES = {
    "shape that the target cannot hold": (changed(**HEAD_DIM), ["GGUF", "`head_dim`", "Use space `width`"]),
    "width that the format cannot hold": (changed(**UNALIGNED), ["bnb:type=nf4", "budget.multiple_of"]),
    "option that the target has not": (set_to("export", ["gguf:kind=q8_0"]), ["`gguf` has no option `kind`", "type"]),
    "value that the option has not": (set_to("export", ["gguf:type=q9_9"]), ["type", "q9_9", "q8_0"]),
    "option without a value": (set_to("export", ["gguf:q8_0"]), ["name:option=value", "`q8_0`"]),
    "unknown target": (set_to("export", ["ggfu"]), ["`ggfu`", "Did you mean `gguf`?"]),
}


@pytest.mark.parametrize("name", CASES)
def test_exports(name, refuses_run, with_packages):
    with_packages(True)
    refuses_run(*CASES[name])


def test_a_missing_package_is_named_with_its_extra(refuses_run, with_packages):
    with_packages(False)
    refuses_run(set_to("export", ["gguf"]), ["`gguf` needs gguf", 'pip install "tuneprune[gguf]"'])


def test_a_shape_is_refused_before_a_package_is_asked_for(refuses_run, with_packages):
    with_packages(False)
    refuses_run(changed(**HEAD_DIM), ["Use space `width`"])


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["--to", "gguf"], ["not the folder of a run", "--out"]),
        (["--to", "hf", "--out", "x"], ["name a target besides hf"]),
        (["--to", "ggfu", "--out", "x"], ["Did you mean `gguf`?"]),
    ],
)
def test_the_export_command(arguments, fragments, model_folder, tuneprune, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_refused(capsys, tuneprune("export", model_folder, *arguments), fragments)
    assert not list(tmp_path.iterdir())


def test_folders_that_cannot_be_exported(model_folder, tuneprune, capsys, tmp_path):
    copy = shutil.copytree(model_folder, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    out = tmp_path / "out"
    for change, fragments in [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, ["gptq, 4 bits", "quantised from"]),
        ({"model_type": "no_such_model"}, ["no_such_model", "known families"]),
    ]:
        (copy / "config.json").write_text(json.dumps(config | change))
        assert_refused(capsys, tuneprune("export", copy, "--to", "gguf", "--out", out), fragments)
    assert_refused(capsys, tuneprune("export", tmp_path, "--to", "gguf", "--out", out), ["has no config.json"])
    assert not out.exists()
