"""A run that was stopped anywhere and resumed ends with the same bytes as one that was not."""

import json
import shutil
import signal

import pytest
import tiny_runs

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
        ("checkpoints/step-000004", signal.SIGKILL, KILLED),  # the decision is frozen
        ("plan/plan.safetensors", signal.SIGKILL, KILLED),
        ("recover/checkpoints/step-000002", signal.SIGKILL, KILLED),
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
    for step in (2, 4, 6):
        server.run_until(out / f"checkpoints/step-{step:06d}", signal.SIGKILL, *arguments, log=log)
    assert server.run(*arguments, log=log) == 0, log.read_text()
    assert_same(uninterrupted / "whole", out)


def test_resuming_a_finished_run_changes_nothing(uninterrupted, server, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(uninterrupted / "whole", out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.name != "config.yaml"}
    assert server.run("run", uninterrupted / "run.yaml", "--out", out, "--resume", log=tmp_path / "log") == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_other_data_is_refused(uninterrupted, server, tmp_path, model_folder):
    out, log = tmp_path / "out", tmp_path / "log"
    run_file = tiny_runs.write_run(tmp_path, model_folder, reference=False)
    arguments = ("run", run_file, "--out", out)
    server.run_until(out / "checkpoints/step-000002", signal.SIGKILL, *arguments, log=log)
    tiny_runs.write_texts(tmp_path / "train.jsonl", tiny_runs.sentences(9, 40))
    assert server.run(*arguments, "--resume", log=log) == 2
    assert "other settings or data" in log.read_text()
