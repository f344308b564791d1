"""A small comparison: complete, the same in parallel, after a stop and after a failure."""

import json
import os
import signal
import xml.etree.ElementTree as ET

import pytest
from helpers import tiny_runs

from tuneprune.report import ComparisonRecord, RunRecord

METHODS = "magnitude,random:space=disp"
NAMES = ("magnitude", "random-space=disp")
CELLS = {f"{name}-keep{keep}-seed{seed}" for name in NAMES for keep in ("0.8", "0.6") for seed in (0, 1)}


@pytest.fixture(scope="module")
def run_file(tmp_path_factory, model_folder):
    folder = tmp_path_factory.mktemp("compared")
    return tiny_runs.write_run(folder, model_folder, tune={"steps": 4})


def arguments(run_file, out, *more, methods=METHODS, keep="0.8,0.6", seeds="0,1"):
    return ("compare", run_file, "--methods", methods, "--keep", keep, "--seeds", seeds, "--out", out, *more)


@pytest.fixture(scope="module")
def serial(run_file, server):
    """The folder of a comparison that was not interrupted."""
    out, log = run_file.parent / "serial", run_file.parent / "log"
    assert server.run(*arguments(run_file, out), log=log) == 0, log.read_text()
    return out


def results(out, keep=""):
    """The plans, weights and scores of every run, or of every run of a budget."""
    found = {}
    for path in sorted(out.glob(f"*{keep}*/record.json")):
        record = RunRecord.load(path)
        plan = (path.parent / "plan" / "plan.safetensors").read_bytes()
        found[path.parent.name] = (plan, record.scores.model_dump_json(), record.relative_performance.mean)
    return found


def test_every_run_has_its_budget_and_the_same_steps(serial):
    comparison = ComparisonRecord.load(serial / "comparison.json")
    assert {cell.name for cell in comparison.cells} == CELLS
    assert comparison.keeps == [0.8, 0.6]
    assert comparison.seeds == [0, 1]
    assert comparison.against == "magnitude"
    assert {row.steps for row in comparison.rows if row.role == "pruned"} == {4}
    for cell in comparison.cells:
        assert cell.keep - 0.05 < cell.kept_share <= cell.keep
        assert cell.space == ("disp" if cell.label.startswith("random") else "width")
    assert {row.label: row.difference is None for row in comparison.at(0.6)} == {
        "dense": True,
        "dense + LoRA": True,
        "magnitude": True,
        "random:space=disp": False,
    }


def test_references_are_shared(serial):
    scored = {seed: json.loads((serial / f"reference-seed{seed}" / "scores.json").read_text()) for seed in (0, 1)}
    assert set(scored[0]) == {"dense", "dense_tuned"}
    assert set(scored[1]) == {"dense_tuned"}
    for path in serial.glob("*/record.json"):
        record = RunRecord.load(path)
        assert record.scores.dense == scored[0]["dense"]
        assert record.scores.dense_tuned == scored[record.seed]["dense_tuned"]
        assert not (path.parent / "reference").exists()


def test_scores_of_one_budget_are_reused_for_the_other(serial):
    assert len(list((serial / "scores").glob("magnitude-*.safetensors"))) == 2  # one for each seed
    reused = [RunRecord.load(path).time["reused_s"] > 0 for path in sorted(serial.glob("magnitude-*/record.json"))]
    assert reused == [True, True, False, False]  # keep 0.6 comes second


def test_what_a_comparison_leaves(serial):
    page, table = ((serial / name).read_text() for name in ("report.html", "table.md"))
    for text in (page, table):
        assert "random:space=disp" in text
        assert "keep 80 %" in text
        assert "Student-t" in text
    assert "magnitude-keep0.6-seed1/report.html" in page
    assert ET.parse(serial / "quality.svg").getroot().tag.endswith("svg")
    assert {path.stem for path in (serial / "logs").iterdir()} == CELLS | {"reference-seed0", "reference-seed1"}


def test_parallel_is_serial(serial, run_file, server):
    out, log = run_file.parent / "parallel", run_file.parent / "log-parallel"
    assert server.run(*arguments(run_file, out, "--jobs", 2, keep="0.6"), log=log) == 0, log.read_text()
    assert results(out) == results(serial, "keep0.6")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 75), (signal.SIGKILL, -signal.SIGKILL)])
def test_stopped_comparison_continues_with_more(serial, run_file, server, tmp_path, number, status):
    out, log = tmp_path / "out", tmp_path / "log"
    few = arguments(run_file, out, keep="0.6", seeds="0")
    assert server.run_until(out / "magnitude-keep0.6-seed0" / "plan", number, *few, log=log) == status
    assert len(list(out.glob("*/record.json"))) < 2
    assert server.run(*arguments(run_file, out, "--resume", keep="0.6"), log=log) == 0, log.read_text()
    assert results(out) == results(serial, "keep0.6")


def test_failed_run_does_not_affect_the_others(serial, run_file, server, tmp_path):
    out, log = tmp_path / "out", tmp_path / "log"
    small = {"keep": "0.6", "seeds": "0"}
    assert server.run(*arguments(run_file, out, methods="magnitude", **small), log=log) == 0, log.read_text()
    in_the_way = out / "random-space=disp-keep0.6-seed0"
    in_the_way.write_text("not a folder")
    both = arguments(run_file, out, "--resume", keep="0.6")
    log.unlink()
    assert server.run(*both, "--jobs", 2, log=log) == 2
    assert "1 run of the comparison failed" in log.read_text()
    assert f"{in_the_way.name}: --out" in log.read_text()
    assert "Traceback" not in log.read_text()
    comparison = ComparisonRecord.load(out / "comparison.json")
    assert {cell.name for cell in comparison.cells} == {c for c in CELLS if "keep0.6" in c} - {in_the_way.name}
    assert set(comparison.failed) == {in_the_way.name}
    assert "1 of 2 seeds" in (out / "table.md").read_text()
    in_the_way.unlink()
    assert server.run(*both, log=log) == 0, log.read_text()
    assert results(out) == results(serial, "keep0.6")


def test_other_base_is_refused_and_finished_work_is_not_repeated(serial, run_file, server, tmp_path):
    log, before = tmp_path / "log", {path: os.stat(path).st_mtime_ns for path in serial.glob("*/record.json")}
    again = arguments(run_file, serial, methods="random:space=disp,magnitude")
    assert server.run(*again, log=log) == 2
    assert "--resume" in log.read_text()
    assert server.run(*again, "--resume", "--set", "tune.steps=5", log=log) == 2
    assert "another configuration" in log.read_text()
    assert server.run(*again, "--resume", log=log) == 0
    assert {path: os.stat(path).st_mtime_ns for path in serial.glob("*/record.json")} == before
    assert ComparisonRecord.load(serial / "comparison.json").against == "random:space=disp"
    assert server.run(*arguments(run_file, serial, "--resume"), log=log) == 0  # as the other tests expect it


def test_without_reference_nothing_is_relative(run_file, server, tmp_path):
    out, log = tmp_path / "out", tmp_path / "log"
    quick = arguments(run_file, out, "--set", "reference=false", methods="random", keep="0.6", seeds="0,3")
    assert server.run(*quick, log=log) == 0, log.read_text()
    comparison = ComparisonRecord.load(out / "comparison.json")
    assert [row.label for row in comparison.rows] == ["dense", "random"]
    assert comparison.rows[1].relative is None
    assert not (out / "quality.svg").exists()
    assert not (out / "reference-seed3").exists()
