"""`tuneprune evaluate --tasks` gives exactly the scores of the command line of lm-evaluation-harness."""

import json
import os
import subprocess
import sys

import pytest
import yaml
from e2e.refusals import assert_refused
from helpers import tiny_runs

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed (extra lm-eval)")
pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # of the library, at import
]
TASKS = {
    "toy_choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{options}}",
        "doc_to_target": "answer",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "toy_text": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{question}}",
        "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
    },
    "toy_answer": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{options[0]}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 6},
        "metric_list": [{"metric": "exact_match"}, {"metric": "chrf"}],
    },
}
EVEN = {"per_layer": "uniform"}
NAMES = ",".join(TASKS)


@pytest.fixture(scope="module")
def task_folder(tmp_path_factory):
    """Local task files over local data, as docs/evaluating.md describes them."""
    folder = tmp_path_factory.mktemp("tasks")
    lines = []
    for index, sentence in enumerate(tiny_runs.sentences(5, 20, 6)):
        words = sentence.split()
        options = [f" {words[-1]}", " tree", " happy"]
        answer = index % 3
        options[0], options[answer] = options[answer], options[0]
        lines.append(json.dumps({"question": " ".join(words[:-1]), "options": options, "answer": answer}))
    (folder / "test.jsonl").write_text("\n".join(lines) + "\n")
    for name, task in TASKS.items():
        data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / "test.jsonl")}}}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, "test_split": "test", **data, **task}))
    return folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def exported(folder, tuneprune, capsys, space):
    base = tiny_runs.save_model(folder / "base", max_position_embeddings=128)
    run_file = tiny_runs.write_run(folder, base, method={"name": "random"}, space=space, budget=EVEN)
    assert tuneprune("plan", run_file, "--out", folder / "planned") == 0
    assert tuneprune("compress", base, "--plan", folder / "planned" / "plan", "--out", folder / "small") == 0
    capsys.readouterr()
    return folder / "small"


def own_command_line(model, task_folder, scratch, *options):
    """The scores of `lm_eval` itself, in a process without tuneprune."""
    (scratch / "tuneprune.py").write_text("raise ImportError('not here')")
    arguments = f"pretrained={model},trust_remote_code=True"
    command = [sys.executable, "-m", "lm_eval", "--model", "hf", "--model_args", arguments, "--tasks", NAMES]
    command += ["--include_path", str(task_folder), "--device", "cpu", "--output_path", str(scratch / "results")]
    environment = {
        **os.environ,
        "HF_DATASETS_CACHE": str(scratch / "cache"),
        "HF_MODULES_CACHE": str(scratch / "modules"),
        "PYTHONPATH": str(scratch),
    }
    ran = subprocess.run(
        [*command, *options], env=environment, cwd=scratch, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    (results,) = (scratch / "results").rglob("results*.json")
    return json.loads(results.read_text())["results"]


@pytest.mark.parametrize("space", ["width", "disp"])
def test_same_numbers_as_its_own_command_line(tmp_path, tuneprune, capsys, task_folder, space):
    model = exported(tmp_path, tuneprune, capsys, space)
    assert (model / "modeling_pruned.py").exists() == (space == "disp")
    trust = ["--trust-remote-code"] if space == "disp" else []
    options = ["--tasks", NAMES, "--task-path", task_folder, "--limit", "15", "--batch-size", "4", *trust]
    assert tuneprune("evaluate", model, *options) == 0
    found = json.loads(capsys.readouterr().out)
    expected = own_command_line(model, task_folder, tmp_path, "--limit", "15", "--batch_size", "4")
    assert found.keys() == expected.keys() == TASKS.keys()
    for task, metrics in found.items():
        numbers = {name: value for name, value in expected[task].items() if "," in name and value != "N/A"}
        assert metrics == numbers, task
        assert {name.split(",")[0] for name in metrics} >= {entry["metric"] for entry in TASKS[task]["metric_list"]}


def test_refusals(tmp_path, model_folder, tuneprune, capsys, task_folder, monkeypatch):
    both = ["--suite", "clinic", "--tasks", "toy_text"]
    assert_refused(capsys, tuneprune("evaluate", model_folder, *both), ["either --suite", "--tasks"])
    assert_refused(capsys, tuneprune("evaluate", model_folder), ["either --suite", "--tasks"])
    own = ["evaluate", model_folder, "--task-path", task_folder, "--tasks"]
    assert_refused(capsys, tuneprune(*own, "toy_tex"), ["no task `toy_tex`", "Did you mean `toy_text`?"])
    nowhere = ["--task-path", tmp_path / "nowhere"]
    assert_refused(capsys, tuneprune(*own, "toy_text", *nowhere), ["no folder", "task files"])
    assert_refused(capsys, tuneprune(*own, "toy_text", "--limit", "0"), ["--limit 0", "at least 1"])
    monkeypatch.setattr("tuneprune.evaluate.lm_harness.find_spec", lambda _: None)
    assert_refused(capsys, tuneprune(*own, "toy_text"), ['pip install "tuneprune[lm-eval]"'])


def test_missing_data_is_named(tmp_path, model_folder, tuneprune, capsys):
    data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(tmp_path / "nowhere.jsonl")}}}
    (tmp_path / "lost.yaml").write_text(yaml.safe_dump({"task": "lost", **data, **TASKS["toy_text"]}))
    options = ["--tasks", "lost", "--task-path", tmp_path]
    assert tuneprune("evaluate", model_folder, *options) == 2
    assert "the data of lost cannot be read" in capsys.readouterr().err
