"""A run that was stopped at any point and resumed gives the same bytes as one that was not stopped."""

import json
import os
import shutil
import signal
import time

import pytest
from helpers import tiny_runs

KILLED = -signal.SIGKILL
SAME = ("model/model.safetensors", "plan/plan.json", "plan/plan.safetensors", "scores.json")


def assert_same(one, other):
    for name in SAME:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    for log in ("metrics.jsonl", "reference/metrics.jsonl", "recover/metrics.jsonl"):
        assert steps(one / log) == steps(other / log)


def steps(path):
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [(line["step"], line["loss"], line.get("kept_share"), line["phase"]) for line in lines]


@pytest.mark.parametrize(
    ("moment", "number", "expected"),
    [
        ("config.yaml", signal.SIGKILL, KILLED),
        ("reference/checkpoints/step-000002", signal.SIGKILL, KILLED),
        ("checkpoints/step-000002", signal.SIGKILL, KILLED),  # deciding
        ("checkpoints/step-000003", signal.SIGKILL, KILLED),  # decided
        ("plan/plan.safetensors", signal.SIGKILL, KILLED),
        ("recover/checkpoints/step-000004", signal.SIGKILL, KILLED),
        ("reference/checkpoints/step-000002", signal.SIGTERM, 75),
        ("checkpoints/step-000002", signal.SIGINT, 75),
        ("scores.json", signal.SIGTERM, 75),
    ],
)
def test_resumed_equals_uninterrupted(uninterrupted, server, tmp_path, moment, number, expected):
    out, log = tmp_path / "out", tmp_path / "log"
    arguments = ("run", uninterrupted / "run.yaml", "--out", out)
    assert server.run_until(out / moment, number, *arguments, log=log) == expected, log.read_text()
    assert not (out / "record.json").exists()
    if expected == 75:
        assert "--resume" in log.read_text()
        assert "Traceback" not in log.read_text()
    assert server.run(*arguments, "--resume", log=log) == 0, log.read_text()
    assert_same(uninterrupted / "whole", out)


def test_killed_again_and_again(uninterrupted, server, tmp_path):
    out, log = tmp_path / "out", tmp_path / "log"
    arguments = ("run", uninterrupted / "run.yaml", "--out", out, "--resume")
    for name in ("checkpoints/step-000002", "checkpoints/step-000003", "recover/checkpoints/step-000004"):
        server.run_until(out / name, signal.SIGKILL, *arguments, log=log)
    assert server.run(*arguments, log=log) == 0, log.read_text()
    assert_same(uninterrupted / "whole", out)


def test_resuming_a_finished_run_changes_nothing(uninterrupted, server, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(uninterrupted / "whole", out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.name != ".lock"}
    assert server.run("run", uninterrupted / "run.yaml", "--out", out, "--resume", log=tmp_path / "log") == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_damaged_checkpoint_is_named_and_the_one_before_used(uninterrupted, server, tmp_path):
    out, log = tmp_path / "out", tmp_path / "log"
    arguments = ("run", uninterrupted / "run.yaml", "--out", out)
    server.run_until(out / "recover/checkpoints/step-000006", signal.SIGKILL, *arguments, log=log)
    newest = max((out / "recover" / "checkpoints").glob("step-*")) / "state.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    assert server.run(*arguments, "--resume", log=log) == 0, log.read_text()
    assert "state.safetensors has" in log.read_text()
    assert "continues from step-00000" in log.read_text()
    assert_same(uninterrupted / "whole", out)


def test_only_damaged_checkpoints_are_an_error(uninterrupted, server, tmp_path):
    out, log = tmp_path / "out", tmp_path / "log"
    arguments = ("run", uninterrupted / "run.yaml", "--out", out)
    server.run_until(out / "checkpoints/step-000002", signal.SIGKILL, *arguments, log=log)
    for path in (out / "checkpoints").glob("step-*/manifest.json"):
        path.unlink()
    for _ in range(2):  # the second call too
        assert server.run(*arguments, "--resume", log=log) == 2
    assert log.read_text().count("are damaged (step-00000") == 2
    assert "Traceback" not in log.read_text()


@pytest.fixture
def begun(server, tmp_path, model_folder):
    """Start a command and kill it as soon as it has written its folder's config.yaml."""

    def begin(*command):
        folder = shutil.copytree(model_folder, tmp_path / "model")
        run_file = tiny_runs.write_run(tmp_path, folder, reference=False)
        out, log = tmp_path / "out", tmp_path / "log"
        arguments = (command[0], *([folder] if command[0] == "recover" else []), run_file, *command[1:], "--out", out)
        assert server.run_until(out / "config.yaml", signal.SIGKILL, *arguments, log=log) == KILLED
        return (*arguments, "--resume")

    return begin


def refusal(tuneprune, capsys, *arguments):
    capsys.readouterr()
    assert tuneprune(*arguments) == 2
    return capsys.readouterr().err


def change(path, *keys, value):
    """Change an entry of a JSON file."""
    content = json.loads(path.read_text())
    inner = content
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "command", [("run",), ("recover",), ("compare", "--methods", "magnitude")], ids=lambda command: command[0]
)
def test_what_a_run_depends_on_must_not_change(begun, tuneprune, tmp_path, capsys, command):
    arguments, out = begun(*command), tmp_path / "out"
    identity, before = out / "identity.json", (out / "identity.json").read_text()
    test, weights = tmp_path / "test.jsonl", tmp_path / "model" / "model.safetensors"

    texts = test.read_text()
    tiny_runs.write_texts(test, tiny_runs.sentences(9, 6))
    assert "other test items (test." in refusal(tuneprune, capsys, *arguments)
    test.write_text(texts)

    content = bytearray(weights.read_bytes())
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert "another model (model.safetensors: was " in refusal(tuneprune, capsys, *arguments)
    weights.write_bytes(content)

    tiny_runs.write_texts(tmp_path / "train.jsonl", tiny_runs.sentences(8, 40))
    change(identity, "code", "sources", value="0" * 64)
    change(identity, "place", "processes", value=2)
    said = refusal(tuneprune, capsys, *arguments, "--set", "tune.steps=7")
    assert "another configuration (tune.steps: was 6, is 7)" in said
    assert "other data (train.sources.1: " in said
    assert "another version of tuneprune (sources: was 000000000000…, is " in said
    assert "another number of processes or kind of device (processes: was 2, is 1)" in said
    assert "Resume it with what it was begun with, or name another --out." in said

    identity.unlink()
    assert "has no identity.json" in refusal(tuneprune, capsys, *arguments)
    identity.write_text(before)
    assert not list(out.rglob("checkpoints"))


def test_other_environment_is_noted(begun, server, tmp_path):
    arguments, log = begun("run"), tmp_path / "log"
    change(tmp_path / "out" / "identity.json", "around", "torch", value="1.0")
    assert server.run(*arguments, log=log) == 0, log.read_text()
    assert "last bits of numbers may differ: torch: was 1.0, is " in log.read_text()


def test_two_runs_cannot_share_a_folder(uninterrupted, server, tuneprune, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ("run", uninterrupted / "run.yaml", "--out", out)

    stopped = server.start(*arguments, log=tmp_path / "log")
    wait_for(out / "config.yaml")
    os.kill(stopped, signal.SIGSTOP)
    assert f"{out} is in use by another process (process " in refusal(tuneprune, capsys, *arguments, "--resume")
    os.kill(stopped, signal.SIGKILL)
    assert server.wait(stopped) == KILLED
    assert server.run(*arguments, "--resume", log=tmp_path / "log") == 0, (tmp_path / "log").read_text()
    assert_same(uninterrupted / "whole", out)


def wait_for(path):
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_folder_of_a_run_killed_at_its_start_is_used_again(begun, server, tmp_path):
    arguments, out = begun("run"), tmp_path / "out"
    shutil.move(out / "config.yaml", out / ".config.yaml.999999999.partial")  # killed just before the rename
    assert server.run(*arguments[:-1], log=tmp_path / "log") == 0, (tmp_path / "log").read_text()
    assert not list(out.glob(".*.partial"))
