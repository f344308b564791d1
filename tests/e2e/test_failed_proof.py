"""A failed proof is an error with its own exit status, and its model is marked as not usable."""

import json

import pytest
import torch
from helpers import tiny_runs

from tuneprune import export
from tuneprune.pipeline import run
from tuneprune.report import RunRecord

FAULTS = {
    "logits": (lambda found: found["logits"].update(max_rel_diff=0.2), "reloaded model equals the final model"),
    "bad number": (lambda found: found["logits"].update(max_rel_diff=float("nan")), "reloaded model equals"),
    "cache": (lambda found: found["generation"].update(cached_equals_uncached=False), "key/value cache"),
    "tokenizer": (lambda found: found.update(tokenizer_agrees=False), "tokenizer"),
    "count": (lambda found: found.update(parameters_counted=7), "saved model has as many parameters as planned"),
}


@pytest.fixture
def faulty(monkeypatch):
    """Change what the fresh process finds."""
    prove = export.prove

    def falsify(change):
        def proved(*arguments, **options):
            found = prove(*arguments, **options)
            change(found)
            return found

        monkeypatch.setattr(export, "prove", proved)

    return falsify


@pytest.mark.parametrize("fault", FAULTS)
def test_every_check_of_the_proof_can_fail_the_run(tmp_path, tuneprune, capsys, faulty, model_folder, fault):
    change, named = FAULTS[fault]
    faulty(change)
    run_file = tiny_runs.write_run(tmp_path, model_folder, reference=False)
    out = tmp_path / "out"

    assert tuneprune("run", run_file, "--out", out) == 3
    assert_said(capsys, out, named)
    assert named in (out / "model" / "PROOF_FAILED").read_text().lower()
    assert "FAILED" in (out / "model" / "README.md").read_text().split("## ")[0]  # at the top
    assert "FAILED" in (out / "report.html").read_text()
    assert not RunRecord.load(out / "record.json").proof.is_ok

    assert tuneprune("run", run_file, "--out", out, "--resume") == 3  # it stays an error
    assert_said(capsys, out, named)


def assert_said(capsys, out, named):
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("tuneprune: The proof of ")
    assert named in last.lower()
    assert str(out / "model") in last


def test_a_passed_proof_leaves_no_mark(uninterrupted):
    assert not (uninterrupted / "whole" / "model" / "PROOF_FAILED").exists()


def test_recover_fails_with_its_proof(tmp_path, tuneprune, capsys, faulty, model_folder):
    faulty(FAULTS["logits"][0])
    run_file = tiny_runs.write_run(tmp_path, model_folder)
    out = tmp_path / "out"
    for further in ((), ("--resume",)):
        assert tuneprune("recover", model_folder, run_file, "--out", out, *further) == 3
        assert_said(capsys, out, "reloaded model equals the tuned model")
    assert (out / "model" / "PROOF_FAILED").exists()


def test_a_wrong_cut_is_seen_although_tuning_follows_it(tmp_path, tuneprune, capsys, monkeypatch, model_folder):
    cut = run.cut

    def cut_wrongly(*arguments):
        small = cut(*arguments)
        with torch.no_grad():
            small.get_output_embeddings().weight.mul_(1.01)
        return small

    monkeypatch.setattr(run, "cut", cut_wrongly)
    run_file = tiny_runs.write_run(tmp_path, model_folder, method={"name": "magnitude"}, reference=False)
    assert tuneprune("run", run_file, "--out", tmp_path / "out") == 3
    assert_said(capsys, tmp_path / "out", "cut model equals the masked model")
    assert json.loads((tmp_path / "out" / "proof.json").read_text())["cut"]["max_rel_diff"] > 1e-3


@pytest.mark.slow
def test_a_comparison_leaves_out_and_reports_a_failed_proof(tmp_path, tuneprune, capsys, monkeypatch, model_folder):
    run_file = tiny_runs.write_run(tmp_path, model_folder, method={"name": "magnitude"}, reference=False)
    out = tmp_path / "out"
    names = ("--methods", "magnitude,random")
    assert tuneprune("compare", run_file, *names, "--out", out) == 0
    failed = out / "random-keep0.6-seed0"
    record = json.loads((failed / "record.json").read_text())
    record["proof"]["logits"]["max_rel_diff"] = 0.2
    (failed / "record.json").write_text(json.dumps(record))
    (failed / "model" / "PROOF_FAILED").write_text("The proof FAILED.\n")
    capsys.readouterr()
    assert tuneprune("compare", run_file, *names, "--out", out, "--resume") == 2
    printed = capsys.readouterr()
    assert "random-keep0.6-seed0: The proof of" in printed.err
    assert "magnitude" in printed.out
    assert "random" not in printed.out.replace("out/random", "")
