import shutil

import pytest

from tuneprune.pipeline import identity


def test_contents_are_those_of_files_that_are_read(tmp_path, model_folder):
    folder = shutil.copytree(model_folder, tmp_path / "model")
    before = identity.contents(str(folder), "config.json")
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= before.keys()
    (folder / "README.md").write_text("a card")
    (folder / ".hidden").mkdir()
    assert identity.contents(str(folder), "config.json") == before
    (folder / "generation_config.json").write_text("{}")
    changed = identity.contents(str(folder), "config.json")
    assert {name for name in changed if changed[name] != before[name]} == {"generation_config.json"}


def test_every_file_of_the_package_counts(tmp_path, monkeypatch):
    package = tmp_path / "package"
    (package / "part" / "__pycache__").mkdir(parents=True)
    (package / "identity.py").write_text("1")
    (package / "part" / "page.html").write_text("2")
    monkeypatch.setattr(identity, "__file__", str(package / "pipeline" / "identity.py"))
    before = identity.sources.__wrapped__()
    (package / "part" / "__pycache__" / "page.pyc").write_text("3")
    assert identity.sources.__wrapped__() == before
    (package / "part" / "page.html").write_text("4")
    after = identity.sources.__wrapped__()
    assert after != before
    (package / "part" / "page.html").rename(package / "part" / "other.html")
    assert identity.sources.__wrapped__() not in (before, after)


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
    (found,) = identity.refusals(old, new)
    assert said in found
    assert identity.refusals(new, new) == []


def test_environment_is_announced_and_not_refused():
    old, new = {"around": {"threads": 1, "cpu": "x"}}, {"around": {"threads": 4, "cpu": "x"}}
    assert identity.refusals(old, new) == []
    assert identity.announcements(old, new) == ["threads: was 1, is 4"]
