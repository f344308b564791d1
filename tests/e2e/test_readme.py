"""Commands of the README and of docs/runs.md: their blocks are read from the files and run in miniature."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from helpers import tiny_runs
from typer.testing import CliRunner

from tuneprune.cli.commands import app
from tuneprune.config import RunConfig
from tuneprune.pipeline.validation import check
from tuneprune.report import RunRecord

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf8")
RUNS = (ROOT / "docs" / "runs.md").read_text(encoding="utf8")
MODEL = "meta-llama/Llama-3.2-1B"
MARKS = ("commands", "exports")
SMALL = {"steps": 4, "batch_size": 4, "max_length": 16, "lora": {"rank": 2}}


def block(mark: str, page: str = README) -> str:
    """The fenced block right after `<!-- mark -->`."""
    return re.search(rf"<!-- {mark} -->\n```\w+\n(.*?)```", page, re.DOTALL).group(1)


def commands() -> list[str]:
    """The commands that are tried, in their order."""
    return [line for text in (*map(block, MARKS), block("stages", RUNS)) for line in shell_lines(text)]


def shell_lines(text: str) -> list[str]:
    return [line.partition("#")[0].strip() for line in text.splitlines() if line.strip()]


def invoke(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def dry_run(target: str) -> str:
    command = ["make", "-n", target]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def model(tmp_path):
    return tiny_runs.save_model(tmp_path / "model", max_position_embeddings=256)


def test_shell_lines_are_all_covered():
    lines = [line for text in re.findall(r"```sh\n(.*?)```", README + RUNS, re.DOTALL) for line in shell_lines(text)]
    covered = [*commands(), "make setup", "make quickstart"]
    assert sorted(lines) == sorted(covered)


def test_run_file_is_one():
    content = yaml.safe_load(block("run"))
    assert RunConfig.model_validate(content).recover is None
    needed = {name for name, field in RunConfig.model_fields.items() if field.is_required()}
    assert content.keys() >= needed


def test_commands_and_their_options_exist(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    for line in commands():
        program, command, *arguments = shlex.split(line)
        if program == "tuneprune":
            known = invoke(command, "--help")
            assert [one for one in arguments if one.startswith("--") and one not in known] == [], line


@pytest.mark.slow
def test_commands_work_in_their_order(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    tiny_runs.write_texts(Path("data/train.jsonl"), tiny_runs.sentences(1, 40))
    tiny_runs.write_texts(Path("data/test.jsonl"), tiny_runs.sentences(3, 6))
    small = {"model": str(model), "tune": SMALL, "method": tiny_runs.METHOD, "speed": False}
    Path("RUN.yaml").write_text(yaml.safe_dump(yaml.safe_load(block("run")) | small))
    for line in commands():
        if line.startswith("tuneprune export") and not all(map(find_spec, ("gguf", "llama_cpp", "onnx", "onnxscript"))):
            continue  # its runtimes are an extra; tests/exports has its tests
        program, *arguments = shlex.split(line.replace(MODEL, str(model)))
        if program == "source":
            assert arguments == [".venv/bin/activate"]
            continue
        assert program == "tuneprune"
        invoke(*arguments)
    compared = {f"{method}-keep0.6-seed0" for method in ("atp", "magnitude", "random")}
    assert {path.name for path in Path("out/compared").iterdir()} >= {*compared, "table.md"}
    assert RunRecord.load(Path("out/mine/record.json")).proof.is_ok
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules")}
    subprocess.run([sys.executable, "-c", block("load")], env=environment, check=True, capture_output=True)


@pytest.mark.slow
def test_quickstart_in_miniature(model, tmp_path):
    lines = [line for line in dry_run("quickstart").splitlines() if "tuneprune compare" in line]
    assert lines == [
        ".venv/bin/tuneprune compare runs/quickstart.yaml --methods atp,magnitude --out out/quickstart",
    ]
    _, command, run_file, *options = shlex.split(lines[0])
    options[-1] = str(tmp_path / "out")
    small = ("tune.steps=2", "tune.batch_size=2", "tune.lora.rank=2", "evaluate.limit=4", "speed=false")
    sets = [part for change in (f"model={model}", *small) for part in ("--set", change)]
    output = invoke(command, str(ROOT / run_file), *options, *sets)
    assert "report.html" in output
    assert {RunRecord.load(path).method.name for path in (tmp_path / "out").glob("*/record.json")} == {
        "atp",
        "magnitude",
    }


def test_quickstart_file_is_valid(monkeypatch):
    monkeypatch.chdir(ROOT)
    if not (ROOT / "embedded" / "base" / "config.json").exists():
        pytest.skip("embedded/base is not here")
    config = RunConfig.model_validate(yaml.safe_load((ROOT / "runs" / "quickstart.yaml").read_text(encoding="utf8")))
    assert len(check(config).tasks) == 4


def test_make_test_runs_the_tests():
    assert "-m pytest" in dry_run("test")


def test_tables_are_what_the_records_say():
    path = ROOT / "benchmarks" / "readme_table.py"
    specification = importlib.util.spec_from_file_location("readme_table", path)
    script = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(script)
    results = ROOT / "benchmarks" / "results"
    comparisons = script.load_comparisons(results)
    assert script.with_best(script.with_quickstart(README, results), comparisons) == README
    details = script.DETAILS.read_text(encoding="utf8")
    assert script.with_results(details, results, comparisons) == details
