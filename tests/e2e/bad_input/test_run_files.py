"""Run files with keys, names and numbers that do not exist; text that is no run file; folders of other runs."""

from pathlib import Path

import pytest
import tiny_runs
import yaml
from refusals import assert_refused, set_to


def without(key):
    return lambda case: case.content.pop(key)


CASES = {
    "unknown key": (set_to("budgets", {"keep": 0.5}), ["unknown key `budgets`", "Did you mean `budget`?"]),
    "unknown nested key": (set_to("tune.learning_rat", 1), ["`tune.learning_rat`", "Did you mean `learning_rate`?"]),
    "unknown deep key": (set_to("tune.lora.ranks", 1), ["`tune.lora.ranks`", "Did you mean `rank`?"]),
    "unknown data key": (
        set_to("data.train", [{"path": "x", "wieght": 2}]),
        ["`data.train.0.wieght`", "Did you mean `weight`?"],
    ),
    "unknown method option": (set_to("method.temprature", 1), ["method.temprature", "Did you mean `temperature`?"]),
    "unknown method": (set_to("method.name", "atpp"), ["`atpp`", "magnitude", "Did you mean `atp`?"]),
    "unknown space": (set_to("space", "widht"), ["`widht`", "head_dim", "Did you mean `width`?"]),
    "unknown suite": (set_to("evaluate", {"suite": "helthcare"}), ["`helthcare`", "Did you mean `healthcare`?"]),
    "no evaluation": (set_to("evaluate", {}), ["suite", "tasks"]),
    "unknown source": (set_to("data.train", [{"source": "pubmedq"}]), ["`pubmedq`", "Did you mean `pubmedqa`?"]),
    "unknown export": (set_to("export", ["hff"]), ["`hff`", "Did you mean `hf`?"]),
    "unknown tracker": (set_to("tune.trackers", ["tensorbored"]), ["tensorbored", "available"]),
    "missing section": (without("data"), ["`data` is missing"]),
    "section of wrong type": (set_to("tune", 3), ["`tune`", "3"]),
    "number out of range": (set_to("tune.steps", 0), ["`tune.steps`", "greater than or equal to 1", "0"]),
    "infinite learning rate": (set_to("tune.learning_rate", float("inf")), ["`tune.learning_rate`", "finite"]),
    "method option out of range": (set_to("method.temperature", -1), ["method.temperature", "greater than 0", "-1"]),
    "recover of other length": (set_to("recover", {"max_length": 16}), ["recover.max_length=16", "tune.max_length=32"]),
}


@pytest.mark.parametrize("name", CASES)
def test_run_files(name, refuses_run):
    refuses_run(*CASES[name])


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        (None, ["Cannot read the run file", "run.yaml"]),
        ("model: [a\nspace: width\n", ["run.yaml, line 2", "malformed YAML"]),
        ("a: b: c\n", ["run.yaml, line 1", "malformed YAML"]),
        ("- model\n", ["run.yaml", "mapping", "budget"]),
        ("", ["run.yaml", "mapping"]),
        ("1: 2\n", ["run.yaml, line 1", "`1` is no text"]),
        ("space: width\nspace: depth\n", ["run.yaml, line 2", "`space` is there twice"]),
        ("tune:\n  steps: 1\n  batch_size: 2\n  steps: 3\n", ["run.yaml, line 4", "`steps` is there twice"]),
        ("? [a]\n: 1\n", ["run.yaml, line 1", "a key is no text"]),
        ("yes: 1\n", ["run.yaml, line 1", "`yes` is no text"]),
        ("a: &a [*a]\n", ["run.yaml, line 1", "inside of what it stands for"]),
        (
            "".join(f"a{n}: &a{n} [{', '.join(9 * [f'*a{n - 1}'] if n else '012345678')}]\n" for n in range(20)),
            ["values"],
        ),
        (f"a: {'[' * 5000}", ["run.yaml, line 1", "more than 40 deep"]),
        (f"a: {'9' * 5000}", ["run.yaml", "a value cannot be read"]),
        ("a: 2026-13-41\n", ["run.yaml", "a value cannot be read"]),
        ("a: !!python/object/apply:os.system [ls]\n", ["run.yaml, line 1", "python/object"]),
        ('a: "\\ud800"\n', ["run.yaml, line 1", "half of a character"]),
        ("a: \0\n", ["run.yaml", "special characters"]),
        ("a: x\n" + "# \n" * 100_000, ["longer than 262144 characters"]),
        ("a: 1\n---\na: 2\n", ["run.yaml, line 2", "another document"]),
    ],
)
def test_run_file_itself(text, fragments, tmp_path, tuneprune, capsys):
    run_file = tmp_path / "run.yaml"
    if text is not None:
        run_file.write_text(text)
    assert_refused(capsys, tuneprune("run", run_file, "--out", tmp_path / "out"), fragments)
    assert not (tmp_path / "out").exists()


def test_run_files_that_are_none(tmp_path, tuneprune, capsys):
    (tmp_path / "latin.yaml").write_bytes("model: größer".encode("latin1"))
    for path in (tmp_path, tmp_path / "latin.yaml", Path("/dev/zero")):
        assert_refused(capsys, tuneprune("validate", path), [str(path)])


def test_anchors_stand_for_what_they_name(tmp_path, model_folder, tuneprune):
    run_file = tiny_runs.write_run(tmp_path, model_folder)
    content = yaml.safe_load(run_file.read_text())
    source = content["data"].pop("calibration")[0]["path"]
    text = yaml.safe_dump(content | {"recover": None}).replace(
        "data:", f"data:\n  calibration: &own [{{path: {source}}}]"
    )
    run_file.write_text(text.replace("recover: null", "recover: {<<: {steps: 1}, steps: 2}"))
    assert tuneprune("validate", run_file) == 0


@pytest.mark.parametrize(
    ("override", "fragments"),
    [
        ("budget.kep=0.5", ["`budget.kep`", "Did you mean `keep`?"]),
        ("budget", ["--set budget", "key.path=value"]),
        ("space.x=1", ["`space` is not a section"]),
        ("budget.keep=[", ["--set budget.keep=[", "malformed YAML"]),
    ],
)
def test_overrides(override, fragments, tmp_path, model_folder, tuneprune, capsys):
    run_file = tiny_runs.write_run(tmp_path, model_folder)
    assert_refused(capsys, tuneprune("run", run_file, "--out", tmp_path / "out", "--set", override), fragments)


def test_out_of_another_run(tmp_path, model_folder, tuneprune, capsys):
    run_file = tiny_runs.write_run(tmp_path, model_folder)
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.doc").write_text("mine")
    assert_refused(capsys, tuneprune("run", run_file, "--out", out), ["not empty", "Name a new folder"])
    assert [file.name for file in out.iterdir()] == ["thesis.doc"]

    (out / "config.yaml").write_text("another: run\n")
    assert_refused(capsys, tuneprune("run", run_file, "--out", out), ["already holds a run", "--resume"])
    assert_refused(capsys, tuneprune("run", run_file, "--out", out, "--resume"), ["another configuration"])
    assert (out / "config.yaml").read_text() == "another: run\n"

    assert_refused(capsys, tuneprune("run", run_file, "--out", run_file), ["is a file"])
