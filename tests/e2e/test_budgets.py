"""Budgets in bytes, in parameters and in time, through the command line."""

import json

import pytest
import yaml
from helpers import tiny_runs
from helpers.toy_latency import table_for
from helpers.toy_spaces import tiny_space

from tuneprune.pipeline import budget_costs

BUDGETS = {
    "bytes": {"of": "bytes", "at_most": "45kB"},
    "share of bytes": {"of": "bytes", "keep": 0.6},
    "parameters": {"of": "total", "at_most": "12k"},
}


def write_run(folder, model, budget, **sections):
    """A run file with this budget."""
    run_file = tiny_runs.write_run(folder, model, reference=False, **sections)
    content = yaml.safe_load(run_file.read_text()) | {"budget": budget}
    run_file.write_text(yaml.safe_dump(content))
    return run_file


def write_table(path, **changes):
    table = table_for(tiny_space(), **changes)
    path.write_text(table.model_dump_json())
    return str(path)


@pytest.fixture
def results(tmp_path, tuneprune):
    """Run with a budget; returns proof and record."""

    def call(run_file, *options, out="out"):
        assert tuneprune("run", run_file, "--out", tmp_path / out, *options) == 0
        return [json.loads((tmp_path / out / name).read_text()) for name in ("proof.json", "record.json")]

    return call


@pytest.mark.parametrize(("name", "space"), [*((name, "width") for name in BUDGETS), ("bytes", "disp")])
def test_sizes(name, space, tmp_path, model_folder, tuneprune, results):
    run_file = write_run(tmp_path, model_folder, BUDGETS[name], space=space)
    proof, record = results(run_file)
    asked, parameters = BUDGETS[name], proof["parameters"]
    written = (tmp_path / "out" / "model" / "model.safetensors").stat().st_size
    if name == "bytes":
        assert written <= 45_000 < written + 4 * parameters["largest_unit"] + 8_000
    elif name == "parameters":
        assert parameters["kept_total"] <= 12_000 < parameters["kept_total"] + parameters["largest_unit"]
    else:
        assert parameters["share_total"] <= 0.6
    assert parameters["of"] == asked["of"]
    assert record["budget"]["at_most"] == asked.get("at_most")
    assert abs(record["budget"]["keep"] - parameters["share_total"]) < parameters["largest_unit"] / 19616
    assert tuneprune("run", tmp_path / "out" / "config.yaml", "--out", tmp_path / "out", "--resume") == 0


@pytest.mark.parametrize("method", ["atp", "flap"])
def test_time_by_a_table(method, tmp_path, model_folder, results):
    budget = {"of": "latency", "keep": 0.8, "table": write_table(tmp_path / "times.json", batch_size=2)}
    options = tiny_runs.METHOD if method == "atp" else {"name": method}
    plans = []
    for out in ("out", "again") if method == "atp" else ("out",):
        proof, record = results(write_run(tmp_path, model_folder, budget, method=options), out=out)
        latency = proof["parameters"]["latency"]
        assert latency["kept_ms"] <= 0.8 * latency["dense_ms"] < latency["kept_ms"] + latency["largest_unit_ms"]
        plans.append((tmp_path / out / "plan" / "plan.safetensors").read_bytes())
    assert len(set(plans)) == 1, "the same table gives the same plan"
    assert record["budget"] | {"of": "latency", "phase": "decode", "batch_size": 2} == record["budget"]
    assert record["latency"]["table_share"] == latency["kept_ms"] / latency["dense_ms"]
    assert record["latency"]["measured_share"] is None
    assert json.loads((tmp_path / "out" / "latency.json").read_text())["batch_size"] == 2
    assert "times.json" not in (tmp_path / "out" / "plan" / "plan.json").read_text()
    card = (tmp_path / "out" / "model" / "README.md").read_text()
    assert "of the dense model's decode latency of made up at batch size 2 is left" in card
    assert "of latency" in (tmp_path / "out" / "report.html").read_text()


def test_whole_layers_by_time(tmp_path, tuneprune, results):
    model = tiny_runs.save_model(tmp_path / "base", num_hidden_layers=4)
    table = table_for(tiny_space(num_hidden_layers=4))
    (tmp_path / "times.json").write_text(table.model_dump_json())
    budget = {"of": "latency", "keep": 0.8, "table": str(tmp_path / "times.json")}
    proof, _ = results(write_run(tmp_path, model, budget, space="depth", method={"name": "short"}))
    latency = proof["parameters"]["latency"]
    assert latency["kept_ms"] == pytest.approx(latency["dense_ms"] - latency["largest_unit_ms"])  # one of four layers


def test_times_are_measured_where_no_table_is_named_and_stay_with_the_run(tmp_path, model_folder, tuneprune, results):
    # keep all of it, as measured times of a toy are noisy
    budget = {"of": "latency", "keep": 1.0, "batch_size": 2}
    run_file = write_run(tmp_path, model_folder, budget, speed=True)
    proof, record = results(run_file)
    assert proof["parameters"]["latency"]["what"] == "decode latency of transformers at batch size 2"
    settings = {(setting["phase"], setting["batch_size"]): setting for setting in record["speed"]["settings"]}
    measured = record["latency"]["measured_share"]
    assert measured["median"] == pytest.approx(1 / settings["decode", 2]["ratio"]["median"])
    assert measured["low"] <= measured["median"] <= measured["high"]


def test_a_table_of_its_own(tmp_path, model_folder, tuneprune, capsys):
    path = tmp_path / "latency.json"
    assert tuneprune("latency", model_folder, "--out", path, "--phase", "prefill", "--batch-size", 2) == 0
    assert "prefill latency of transformers at batch size 2" in capsys.readouterr().out
    run_file = write_run(tmp_path, model_folder, {"of": "latency", "keep": 1.0, "table": str(path)})
    assert tuneprune("validate", run_file) == 0
    assert "prefill latency of transformers at batch size 2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("budget", "sections", "said"),
    [
        ({"of": "latency", "table": "nowhere.json"}, {}, "cannot read nowhere.json"),
        ({"of": "latency", "phase": "prefill", "table": "{table}"}, {}, "was measured with phase=decode"),
        ({"of": "latency", "keep": 0.1, "table": "{table}"}, {}, "of latency is below what space `width` can reach"),
        ({"of": "latency"}, {"space": "disp"}, "Use space width or depth"),
        ({"of": "latency", "table": "{other}"}, {}, "a model with other shapes"),
        ({"of": "bytes", "at_most": "1GB"}, {}, "removes nothing: the dense model has 78.46 kB"),
        ({"of": "bytes", "keep": 0.5, "at_most": "1kB"}, {}, "write one of them"),
        ({"at_most": "1MB"}, {}, "write parameters, such as 350M"),
        ({"phase": "decode"}, {}, "`phase` belongs to `of: latency`"),
        ({"multiple_of": "128"}, {}, "write `auto` or a whole number"),
        ({"of": "tokens"}, {}, "'total', 'prunable', 'bytes' or 'latency'"),
        (
            {"of": "bytes"},
            {"space": "head_dim", "method": {"name": "tomoe", "budget_counts": "active"}},
            "meets its budget by what one token uses",
        ),
    ],
)
def test_bad_budgets(budget, sections, said, tmp_path, model_folder, tuneprune, capsys):
    other = table_for(tiny_space(intermediate_size=40))
    (tmp_path / "other.json").write_text(other.model_dump_json())
    places = {"table": write_table(tmp_path / "times.json"), "other": str(tmp_path / "other.json")}
    if "table" in budget:
        budget = budget | {"table": budget["table"].format(**places)}
    run_file = write_run(tmp_path, model_folder, budget, **sections)
    assert tuneprune("run", run_file, "--out", tmp_path / "out") == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("tuneprune: ")
    assert said in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("budget", "said"), [({"of": "bytes"}, "budget.of=bytes"), ({"at_most": "9k"}, "at_most=9k")])
def test_comparisons_take_shares_of_all_parameters(budget, said, tmp_path, model_folder, tuneprune, capsys):
    run_file = write_run(tmp_path, model_folder, budget)
    assert tuneprune("compare", run_file, "--methods", "random,magnitude", "--out", tmp_path / "out") == 2
    assert said in capsys.readouterr().err


def test_processes_together_need_a_table(tmp_path, model_folder, tuneprune, capsys, monkeypatch):
    monkeypatch.setattr(budget_costs, "world_size", lambda: 2)
    run_file = write_run(tmp_path, model_folder, {"of": "latency", "keep": 0.8})
    assert tuneprune("validate", run_file) == 2
    assert "several processes would each measure a different table" in capsys.readouterr().err
