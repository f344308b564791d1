"""Targets are named, refused and converted alike, whichever they are."""

import json
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from helpers.tiny import tiny_model
from helpers.toy_tokenizer import tiny_tokenizer

from tuneprune import export
from tuneprune.errors import ConfigError, UnsupportedExport
from tuneprune.export import targets
from tuneprune.export.conversion import convert


class Listing(targets.Target):
    """A made-up target that lists the weight files."""

    name: ClassVar[str] = "listing"
    title: ClassVar[str] = "names of the weight files"
    extra: ClassVar[str] = "listing"

    case: str = "lower"

    def refuse(self, shape):
        if shape.hidden > 32:
            raise UnsupportedExport("listing takes 32 features at most. Use another target.")

    def write(self, source: Path, folder: Path, shape):
        names = sorted(file.name for file in source.glob("*.safetensors"))
        (folder / "names.txt").write_text("\n".join(names if self.case == "lower" else map(str.upper, names)))

    def prove(self, folder, reference, shape):
        assert len(reference.greedy_ids) == 32
        if self.case == "broken":
            raise UnsupportedExport("the written file does not run.")
        return {"status": "structure", "why": "a list runs nowhere"}


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setattr("tuneprune.export.targets.registry", lambda: {"listing": Listing})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "model"
    export.write(tiny_model("llama", dtype=torch.float32), tiny_tokenizer(), folder)
    return folder


def test_options_and_labels():
    named = export.targets_by_label(["hf", "listing:case=UPPER", "listing"])
    assert named == {"listing-case-UPPER": Listing(case="UPPER"), "listing": Listing()}
    with pytest.raises(ConfigError, match=r"`listing` has no option `size`; it has case"):
        export.targets_by_label(["listing:size=3"])
    with pytest.raises(ConfigError, match="name:option=value"):
        export.targets_by_label(["listing:UPPER"])
    with pytest.raises(UnsupportedExport, match="Did you mean `listing`"):
        export.targets_by_label(["listin"])


def test_the_result_stands_beside_the_files(tmp_path, folder):
    found = convert(folder, Listing(), tmp_path / "out", export.take_reference(folder))
    assert found["files"] == {"names.txt": len("model.safetensors")}
    assert found["proof"] == {"status": "structure", "why": "a list runs nowhere"}
    assert json.loads((tmp_path / "out" / "export.json").read_text()) == found


def test_a_failed_proof_leaves_the_earlier_export(tmp_path, folder):
    convert(folder, Listing(), tmp_path / "out", None)
    before = (tmp_path / "out" / "names.txt").read_bytes()
    with pytest.raises(UnsupportedExport):
        convert(folder, Listing(case="broken"), tmp_path / "out", export.take_reference(folder))
    assert (tmp_path / "out" / "names.txt").read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out"]


def test_a_missing_package_names_the_extra(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(Listing, "packages", ("no_such_package",))
    with pytest.raises(UnsupportedExport, match=r'no_such_package.*pip install "tuneprune\[listing\]"'):
        convert(folder, Listing(), tmp_path / "out", None)
    assert not list(tmp_path.iterdir())


def test_a_shape_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    export.write(tiny_model("llama", dtype=torch.float32, hidden_size=64), tiny_tokenizer(), tmp_path / "model")
    with pytest.raises(UnsupportedExport, match="32 features at most"):
        convert(tmp_path / "model", Listing(), tmp_path / "out", None)
    assert not (tmp_path / "out").exists()
