"""The other commands, on the files of one small run."""

import errno
import json
import logging
import os
import signal

import pytest
import yaml
from helpers import tiny_runs

from tuneprune.errors import TunePruneError
from tuneprune.export import shards
from tuneprune.pipeline import run as run_module


@pytest.fixture(scope="module")
def finished(uninterrupted):
    """The folder of a finished run."""
    return uninterrupted / "whole"


def test_version(tuneprune, capsys):
    assert tuneprune("--version") == 0
    assert capsys.readouterr().out.strip() == "0.1.0"


@pytest.mark.parametrize(
    ("command", "known"),
    [("methods", "atp"), ("families", "qwen3"), ("spaces", "head_dim"), ("suites", "healthcare")],
)
def test_lists(command, known, tuneprune, capsys):
    assert tuneprune(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith(known) and len(line) > len(known) + 10 for line in lines)
    assert tuneprune(command, "--json") == 0
    assert known in json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("command", ["methods", "families", "spaces", "suites"])
def test_lists_fit_a_terminal(command, tuneprune, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert tuneprune(command) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_methods_are_listed_with_spaces_and_presets(tuneprune, capsys):
    assert tuneprune("methods", "--json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert "Spaces: depth. https://arxiv.org/abs/2403.03853" in listed["short"]
    assert listed["hesso-cric"] == "Preset of hesso: corrective=True"
    assert "prior=none" in listed["atp-paper"]
    assert "temperature" not in listed["atp-paper"]  # as by default
    assert not any(text.startswith("Hyper-parameters") for text in listed.values())


def test_help_names_every_command(tuneprune, capsys):
    assert tuneprune("--help") == 0
    text = capsys.readouterr().out
    for command in ("run", "compare", "validate", "inspect", "recover", "evaluate", "compress", "report", "methods"):
        assert command in text


def test_validate_writes_nothing(tmp_path, model_folder, tuneprune, capsys):
    run_file = tiny_runs.write_run(tmp_path, model_folder)
    before = sorted(tmp_path.rglob("*"))
    assert tuneprune("validate", run_file, "--set", "budget.keep=0.5", "--set", "method.generator=free") == 0
    assert "50.0% of all" in capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("space", ["width", "head_dim", "disp", "depth"])
def test_inspect(space, model_folder, tuneprune, capsys):
    assert tuneprune("inspect", model_folder, "--space", space, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["parameters"]["total"] == 19616
    assert found["space"] == space
    assert tuneprune("inspect", model_folder, "--space", space) == 0
    assert "keep 0.6 of total" in capsys.readouterr().out


def test_configuration_is_complete_and_reads_back(finished, tuneprune, tmp_path):
    content = yaml.safe_load((finished / "config.yaml").read_text())
    assert content["method"]["name"] == "atp"
    assert content["method"]["temperature"] == 0.4
    assert content["recover"]["max_length"] == content["tune"]["max_length"] == 32  # as in `tune`
    assert content["recover"]["steps"] == content["tune"]["steps"] == 6
    assert content["recover"]["lora"]["rank"] == 4
    assert content["recover"]["lora"]["dropout"] == 0.1
    assert tuneprune("validate", finished / "config.yaml") == 0


def test_compress_by_a_stored_plan(finished, model_folder, tuneprune, tmp_path, capsys):
    assert tuneprune("compress", model_folder, "--plan", finished / "plan", "--out", tmp_path / "small") == 0
    kept = json.loads((finished / "record.json").read_text())["parameters"]["kept_total"]
    assert capsys.readouterr().out.startswith(f"{kept:,} parameters")


def test_compress_in_files_of_a_size(finished, model_folder, tuneprune, tmp_path, capsys):
    options = ("--plan", finished / "plan", "--out", tmp_path / "small", "--max-shard-size")
    assert tuneprune("compress", model_folder, *options, "20KB") == 0
    index = json.loads((tmp_path / "small" / "model.safetensors.index.json").read_text())
    assert {file.name for file in (tmp_path / "small").glob("*.safetensors")} == set(index["weight_map"].values())
    assert tuneprune("compress", model_folder, *options, "many") == 2
    assert "`many` is not a size" in capsys.readouterr().err


def test_stopped_compress_says_that_nothing_was_written(
    finished, model_folder, tuneprune, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(shards, "write_file", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    assert tuneprune("compress", model_folder, "--plan", finished / "plan", "--out", tmp_path / "small") == 75
    assert "Nothing was written" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_evaluate_a_dense_and_a_ragged_model(finished, model_folder, tuneprune, capsys):
    arguments = ("--suite", "clinic", "--limit", "2")
    assert tuneprune("evaluate", model_folder, *arguments) == 0
    assert "clinic_nli" in json.loads(capsys.readouterr().out)
    assert tuneprune("evaluate", finished / "model", *arguments, "--trust-remote-code") == 0
    assert "clinic_nli" in json.loads(capsys.readouterr().out)
    assert tuneprune("evaluate", finished / "model", *arguments) == 2
    assert "--trust-remote-code" in capsys.readouterr().err


def test_report_again(finished, tuneprune):
    page = finished / "report.html"
    written = page.read_bytes()
    page.unlink()
    assert tuneprune("report", finished) == 0
    assert page.read_bytes() == written


def test_plan_of_a_one_shot_method_is_the_one_its_run_cuts_by(tmp_path, model_folder, tuneprune, server, capsys):
    run_file = tiny_runs.write_run(tmp_path, model_folder, tune={"steps": 2}, reference=False)
    options = ("--set", "method=magnitude", "--out")
    assert tuneprune("plan", run_file, *options, tmp_path / "planned") == 0
    assert {path.name for path in (tmp_path / "planned").iterdir()} == {".lock", "config.yaml", "identity.json", "plan"}
    assert server.run("run", run_file, *options, tmp_path / "ran", log=tmp_path / "log") == 0
    planned, ran = ((tmp_path / name / "plan" / "plan.safetensors").read_bytes() for name in ("planned", "ran"))
    assert planned == ran
    assert tuneprune("compress", model_folder, "--plan", tmp_path / "planned" / "plan", "--out", tmp_path / "cut") == 0
    capsys.readouterr()
    assert tuneprune("plan", run_file, "--set", "method=atp", "--out", tmp_path / "other") == 2
    assert "magnitude, minitron, random" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_output_is_clean_when_piped(uninterrupted):
    text = (uninterrupted / "log").read_text()
    progress = [line for line in text.splitlines() if line.startswith("• ")]
    assert progress[0] == "• prepare"
    assert progress[-1] == "• report"
    for noise in ("Loading weights", "Writing model", "Warning", "warn", "\x1b[", "\r", "it/s"):
        assert noise not in text
    assert "" not in text.split("report:")[0].splitlines()[: len(progress)]


def test_trackers(tmp_path, model_folder, server):
    run_file = tiny_runs.write_run(tmp_path, model_folder, tune={"trackers": ["tensorboard"]}, reference=False)
    log = tmp_path / "log"
    assert server.run("run", run_file, "--out", tmp_path / "out", log=log) == 0, log.read_text()
    events = list((tmp_path / "out" / "tuneprune").rglob("events.*"))
    assert events
    assert b"kept_share" in b"".join(path.read_bytes() for path in events)


def test_diverged_run_is_reported_and_keeps_its_log(tmp_path, model_folder, server):
    tune = {"learning_rate": 1e30, "max_skipped": 2, "steps": 20}
    run_file = tiny_runs.write_run(tmp_path, model_folder, tune=tune, reference=False)
    log = tmp_path / "log"
    assert server.run("run", run_file, "--out", tmp_path / "out", log=log) == 2, log.read_text()
    assert "2 steps in a row" in log.read_text()
    assert "Lower tune.learning_rate" in log.read_text()
    assert "Traceback" not in log.read_text()
    assert list((tmp_path / "out" / "checkpoints").glob("step-*"))


def test_full_disk_outside_of_checkpoints(tmp_path, model_folder, tuneprune, capsys, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(run_module, "decide", full)
    run_file = tiny_runs.write_run(tmp_path, model_folder, reference=False)
    assert tuneprune("run", run_file, "--out", tmp_path / "out") == 2
    assert "No space left on device" in capsys.readouterr().err


def test_library_use_raises_instead_of_exiting(tmp_path, model_folder):
    from tuneprune.config import load_run_file

    with pytest.raises(TunePruneError):
        load_run_file(tmp_path / "nowhere.yaml")
    config = load_run_file(tiny_runs.write_run(tmp_path, model_folder), ["budget.keep=0.01"])
    with pytest.raises(TunePruneError, match="reach"):
        run_module.run(config, tmp_path / "out")
    assert logging.getLogger().level == logging.WARNING


def test_plan_that_is_made_again_is_the_same(tmp_path, model_folder, tuneprune, capsys):
    run_file = tiny_runs.write_run(tmp_path, model_folder, method={"name": "magnitude"})
    assert tuneprune("plan", run_file, "--out", tmp_path / "planned") == 0
    files = [tmp_path / "planned" / "plan" / name for name in ("plan.json", "plan.safetensors")]
    before = [file.read_bytes() for file in files]
    assert tuneprune("plan", run_file, "--out", tmp_path / "planned") == 0
    assert [file.read_bytes() for file in files] == before
    assert tuneprune("plan", run_file, "--out", tmp_path / "planned", "--set", "budget.keep=0.7") == 2
    assert "another configuration" in capsys.readouterr().err
    assert [file.read_bytes() for file in files] == before
