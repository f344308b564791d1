"""How `tuneprune compare` reads the methods it is given, and which runs it plans."""

import pytest
import yaml
from helpers import tiny_runs
from helpers.report_samples import record

from tuneprune.config import RunConfig
from tuneprune.errors import ConfigError, RunsFailed
from tuneprune.methods.magnitude import Magnitude
from tuneprune.pipeline.comparison_runs import add_to_manifest, entries, entry, finished, plan_runs
from tuneprune.pipeline.record import PROOF_FAILED
from tuneprune.pipeline.workers import _ended


@pytest.fixture
def config(tmp_path):
    return RunConfig.model_validate(tiny_runs.run_content(tmp_path, tmp_path / "model"))


def test_own_options_apply_to_the_own_method_only(config):
    assert entry("atp", config).method == config.method
    changed = entry("atp:prior=none:control_share=0.5", config).method
    assert (changed.prior, changed.control_share) == ("none", 0.5)
    assert changed.generator_size == config.method.generator_size == 8
    assert type(config.method)().generator_size != 8
    assert entry("magnitude", config).label == "magnitude"


def test_space_of_a_method_that_does_not_support_the_run_files(config, monkeypatch):
    monkeypatch.setattr(Magnitude, "spaces", ("head_dim", "disp"))
    assert entry("magnitude", config).space == "head_dim"
    assert entry("magnitude:space=disp", config).space == "disp"
    assert entry("random", config).space == config.space
    with pytest.raises(ConfigError, match=r"does not support space `width`; it supports head_dim, disp\.$"):
        entry("magnitude:space=width", config)


@pytest.mark.parametrize("texts", [["random", "random"], ["random:space=disp", "random/space=disp"]])
def test_names_are_unique_also_as_folders(config, texts):
    with pytest.raises(ConfigError):
        entries(texts, config)


def test_one_run_for_everything_and_every_budget_in_turn(config):
    chosen = entries(["magnitude", "random:space=disp"], config)
    runs = plan_runs(config, chosen, (0.8, 0.6), (0, 4))
    assert [planned.name for planned in runs] == [
        "reference-seed0",
        "reference-seed4",
        "magnitude-keep0.8-seed0",
        "random-space=disp-keep0.8-seed0",
        "magnitude-keep0.8-seed4",
        "random-space=disp-keep0.8-seed4",
        "magnitude-keep0.6-seed0",
        "random-space=disp-keep0.6-seed0",
        "magnitude-keep0.6-seed4",
        "random-space=disp-keep0.6-seed4",
    ]
    last = runs[-1]
    assert last.needs == ("reference-seed0", "reference-seed4")
    assert (last.config.space, last.config.budget.keep, last.config.seed) == ("disp", 0.6, 4)
    assert last.config.tune == config.tune
    assert runs[1].needs == ("reference-seed0",)
    assert yaml.safe_load(last.config.to_yaml())["method"] == {"name": "random"}


def test_without_reference_the_dense_model_is_scored_once(config):
    plain = config.model_copy(update={"reference": False})
    runs = plan_runs(plain, entries(["random"], plain), (0.6,), (0, 4))
    assert [planned.name for planned in runs] == ["reference-seed0", "random-keep0.6-seed0", "random-keep0.6-seed4"]
    assert runs[-1].needs == ("reference-seed0",)


def test_a_model_whose_proof_failed_is_not_compared(tmp_path, config):
    runs = plan_runs(config, entries(["random"], config), (0.6,), (0,))
    add_to_manifest(runs, tmp_path)
    (tmp_path / runs[-1].name / "model").mkdir(parents=True)
    record().save(runs[-1].result(tmp_path))
    assert runs[-1].is_complete(tmp_path)
    assert finished(tmp_path).keys() == {runs[-1].name}
    (tmp_path / runs[-1].name / "model" / PROOF_FAILED).touch()
    assert not runs[-1].is_complete(tmp_path)
    assert finished(tmp_path) == {}


def test_failures_are_one_sentence_each():
    error = RunsFailed({"a": "ended by SIGKILL.", "b": "out of data."}, "out/x")
    assert str(error).splitlines() == [
        "2 runs of the comparison failed; see the logs in out/x/logs, and retry with --resume.",
        "  a: ended by SIGKILL.",
        "  b: out of data.",
    ]
    assert "memory" in _ended(-9)
    assert _ended(3) == "ended with status 3."
