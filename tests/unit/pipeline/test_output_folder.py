"""Output folders: what a killed run leaves does not prevent resuming, and what a run depends on is compared."""

import shutil
import subprocess
import sys

import pytest
from helpers.tiny_runs import run_content

from tuneprune.config import RunConfig
from tuneprune.errors import ConfigError
from tuneprune.pipeline import output_folder
from tuneprune.pipeline.output_folder import FORMAT, IDENTITY, SETTINGS, open_folder
from tuneprune.system.locks import LOCK


def dead_process():
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def take(out, config):
    with open_folder(out, config, {"format": FORMAT, "around": {}}, resume=True, note=print):
        pass


def test_half_written_files_of_a_killed_run_are_deleted(tmp_path):
    config, out = RunConfig.model_validate(run_content(tmp_path / "data", tmp_path / "model")), tmp_path / "out"
    out.mkdir()
    (out / f".config.yaml.{dead_process()}.partial").write_text("model:")
    take(out, config)
    assert {path.name for path in out.iterdir()} == {SETTINGS, IDENTITY, LOCK}
    (out / "plan").mkdir()
    (out / "plan" / f".plan.json.{dead_process()}.partial").write_text("{")
    take(out, config)
    assert not any((out / "plan").iterdir())


def test_a_folder_of_something_else_is_not_changed(tmp_path):
    config, out = RunConfig.model_validate(run_content(tmp_path / "data", tmp_path / "model")), tmp_path / "out"
    left = out / f".thesis.tex.{dead_process()}.partial"
    out.mkdir()
    for path in (left, out / "thesis.tex"):
        path.touch()
    with pytest.raises(ConfigError, match="holds no run"):
        take(out, config)
    assert left.exists()


def test_contents_are_those_of_files_that_are_read(tmp_path, model_folder):
    folder = shutil.copytree(model_folder, tmp_path / "model")
    before = output_folder.contents(str(folder), "config.json")
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= before.keys()
    (folder / "README.md").write_text("a card")
    (folder / ".hidden").mkdir()
    assert output_folder.contents(str(folder), "config.json") == before
    (folder / "generation_config.json").write_text("{}")
    changed = output_folder.contents(str(folder), "config.json")
    assert {name for name in changed if changed[name] != before[name]} == {"generation_config.json"}


def test_every_file_of_the_package_counts(tmp_path, monkeypatch):
    package = tmp_path / "package"
    (package / "part" / "__pycache__").mkdir(parents=True)
    (package / "identity.py").write_text("1")
    (package / "part" / "page.html").write_text("2")
    monkeypatch.setattr(output_folder, "__file__", str(package / "pipeline" / "output_folder.py"))
    before = output_folder.sources.__wrapped__()
    (package / "part" / "__pycache__" / "page.pyc").write_text("3")
    assert output_folder.sources.__wrapped__() == before
    (package / "part" / "page.html").write_text("4")
    after = output_folder.sources.__wrapped__()
    assert after != before
    (package / "part" / "page.html").rename(package / "part" / "other.html")
    assert output_folder.sources.__wrapped__() not in (before, after)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            {"code": {"sources": "a" * 64}},
            {"code": {"sources": "b" * 64}},
            "was aaaaaaaaaaaa…, is bbbbbbbbbbbb…",
        ),
        ({"settings": {"tune": {"steps": 6}}}, {"settings": {"tune": {"steps": 8}}}, "(tune.steps: was 6, is 8)"),
        ({"settings": {}}, {"settings": {"new": True}}, "another configuration (new: was absent, is true)"),
        ({"settings": []}, {"settings": {"a": 1}}, "another configuration (the whole: was [], is {"),
        (
            {"model": {"a": "1", "b": "1"}},
            {"model": {"a": "2", "c": "1"}},
            "(a: was 1, is 2, and 2 more)",
        ),
        ({"data": {"x": "y" * 100}}, {"data": {"x": None}}, "y…, is absent"),
        ({"place": {"processes": 1}}, {"place": {"processes": 2}}, "another number of processes"),
    ],
)
def test_differences_are_named_with_both_values(old, new, said):
    (found,) = output_folder.refused_changes(old, new)
    assert said in found
    assert output_folder.refused_changes(new, new) == []


def test_changes_of_the_environment_are_listed_and_not_refused():
    old, new = {"around": {"threads": 1, "cpu": "x"}}, {"around": {"threads": 4, "cpu": "x"}}
    assert output_folder.refused_changes(old, new) == []
    assert output_folder.environment_changes(old, new) == ["threads: was 1, is 4"]
