"""The scripts in benchmarks/ and embedded/: how they process their numbers."""

import importlib.util
import json
import random
import sys
import time
from pathlib import Path

import pytest
import yaml
from helpers import tiny, tiny_runs
from helpers.report_samples import comparison, record

from tuneprune import families
from tuneprune.config import load_run_file
from tuneprune.pipeline.job import prepare
from tuneprune.structure import spaces
from tuneprune.system.progress import Progress

ROOT = Path(__file__).resolve().parents[2]


def script(path):
    specification = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_overhead_compares_within_a_round_and_computes_a_whole_run_from_its_phases(tmp_path):
    def measured(seconds, phases, **parts):
        steps = {phase: [99.0, 99.0, value, value] for phase, value in phases.items()}
        return {"whole_s": seconds, "cpu_s": 1.0, "steps_s": steps, "peak_bytes": 100, "loaded_bytes": 80, **parts}

    def pruned(factor, **phases):
        return measured(16 * factor, {phase: value * factor for phase, value in phases.items()}, cut_s=2.0 * factor)

    rounds = {
        "lora": [measured(6.0, {"tune": 1.0}), measured(24.0, {"tune": 4.0})],  # the second round on a busy machine
        "keep 0.6": [pruned(1, control=2.0, recover=0.5), pruned(4, control=2.0, recover=0.5)],
    }
    overhead = script("benchmarks/overhead.py")
    figures = overhead.summarize(rounds, control=30, after=270)
    over = figures["keep 0.6"]["over_lora"]
    assert over["control"] == {"median": 2.0, "low": 2.0, "high": 2.0}
    assert over["recover"]["median"] == 0.5
    assert over["peak_bytes"]["median"] == 1.0
    plain = 6 + 296 * 1.0  # what was measured, and the steps that were not at the median of their phase
    assert figures["lora"]["whole"]["low"] == plain
    assert over["whole"]["median"] == (16 + 26 * 2.0 + 266 * 0.5) / plain
    assert over["cut_s"]["median"] == 2 / plain
    settings = {"control": 30, "after": 270}
    overhead.write(tmp_path / "overhead.json", "other", {})
    overhead.write(tmp_path / "overhead.json", "one", {"figures": figures, "settings": settings, "rounds_done": 2})
    kept = json.loads((tmp_path / "overhead.json").read_text())["runs"]
    assert list(kept) == ["other", "one"]
    lines = overhead.table("one", kept["one"]).splitlines()
    assert "| control step | 2.00 (2.00 to 2.00), missed | at most 1.5 |" in lines
    assert "| step after the cut | 0.50 (0.50 to 0.50) | at most 0.7 |" in lines


def test_overhead_measures_both_phases_of_a_run_and_plain_lora(tmp_path, model_folder):
    measure, run_file = script("benchmarks/overhead.py").measure, tiny_runs.write_run(tmp_path, model_folder)
    pruned = measure(run_file, ["tune.steps=4"], prunes=True)
    assert {phase: len(steps) for phase, steps in pruned["steps_s"].items()} == {"control": 2, "recover": 2}
    once = pruned["begin_s"] + pruned["plan_s"] + pruned["cut_s"]
    assert once < pruned["whole_s"]
    assert pruned["loaded_bytes"] <= pruned["peak_bytes"]
    plain = measure(run_file, ["tune.steps=4"], prunes=False)
    assert {phase: len(steps) for phase, steps in plain["steps_s"].items()} == {"tune": 4}


def test_what_was_collected_for_a_gpu_machine_arrives_in_parts_of_a_limited_size(tmp_path):
    collect, gpu = script("benchmarks/gpu/collect.py"), script("benchmarks/gpu/run.py")
    assert gpu.unpack(tmp_path) is None
    (tmp_path / "data").mkdir()
    content = random.Random(0).randbytes(25_000)
    (tmp_path / "data" / "train.jsonl").write_bytes(content)
    parts = collect.pack({"data/set": tmp_path / "data"}, tmp_path / "load", 10_000)
    assert [part.name for part in parts] == [f"load.tar.xz.{index}-of-3" for index in (1, 2, 3)]
    assert max(part.stat().st_size for part in parts) <= 10_000
    load = gpu.unpack(tmp_path / "load")
    assert (load / "data" / "set" / "train.jsonl").read_bytes() == content
    parts[1].unlink()
    with pytest.raises(SystemExit, match=r"load.tar.xz.2-of-3 .* is missing"):
        gpu.unpack(tmp_path / "load")


def test_a_part_of_the_gpu_run_that_fails_or_takes_too_long_is_recorded(tmp_path, monkeypatch):
    gpu, log = script("benchmarks/gpu/run.py"), tmp_path / "log.txt"
    monkeypatch.setattr(gpu, "GRACE", 1.0)

    def outcome(program, seconds=60.0, **options):
        part = gpu.Part("part", [sys.executable, "-c", program], until=1.0, **options)
        return gpu.perform(part, log, time.monotonic(), seconds)

    def broken():
        raise ValueError("no record")

    assert outcome("print('all well')")["outcome"] == "done"
    assert outcome("pass", watch=broken)["error"] == "ValueError: no record"
    failed = outcome("raise SystemExit('no model')")
    assert (failed["outcome"], failed["error"]) == ("failed", "exit status 1: no model")
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    stopped = outcome(child, seconds=2.0)
    assert stopped["outcome"] == "stopped"
    assert stopped["seconds"] < 30
    assert "all well" in log.read_text()


def test_the_gpu_run_keeps_the_comparison_of_the_runs_that_are_complete(tmp_path, monkeypatch):
    gpu, runs = script("benchmarks/gpu/run.py"), tmp_path / "runs"
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    watch = gpu.keep_comparison(runs, tmp_path)
    watch()
    assert not (tmp_path / "comparison.json").exists()
    for name in ("atp", "flap"):
        (runs / f"{name}-seed0").mkdir(parents=True)
        record(name).save(runs / f"{name}-seed0" / "record.json")
    cells = {"atp-seed0": "atp", "flap-seed0": "flap", "slicegpt-seed0": "slicegpt"}
    (runs / "cells.json").write_text(json.dumps({"schema": 1, "cells": cells}))
    (runs / "logs").mkdir()
    for name in ("atp-seed0", "slicegpt-seed0"):
        (runs / "logs" / f"{name}.txt").write_text(f"what {name} said")
    watch()
    kept = json.loads((tmp_path / "comparison.json").read_text())
    assert {cell["label"] for cell in kept["cells"]} == {"atp", "flap"}
    assert gpu.logs_of_failures(runs) == "\n== slicegpt-seed0\nwhat slicegpt-seed0 said"


def test_table_markers_are_required():
    with pytest.raises(SystemExit, match="table"):
        script("benchmarks/readme_table.py").with_table("no markers", [])


def test_kept_comparison_reads_back_and_makes_the_readme(tmp_path):
    kept = script("benchmarks/comparison.py")
    assert kept.all_methods().startswith("atp,")
    found = comparison(keeps=(0.8, 0.6))
    text = kept.compact(found.model_copy(update={"failed": {"a": "out of memory"}}))
    assert len(text.splitlines()) < 60
    (tmp_path / "comparison").mkdir()
    (tmp_path / "comparison" / "healthcare.json").write_text(text)
    tables = script("benchmarks/readme_table.py")
    comparisons = tables.load_comparisons(tmp_path)
    assert comparisons["healthcare"].rows == found.rows
    readme = tables.with_comparisons("a\n<!-- comparison -->\nold\n<!-- /comparison -->\nb\n", comparisons)
    assert readme.startswith("a\n<!-- comparison -->\n### Healthcare")
    assert "| magnitude | width | 89.0 ± " in readme
    assert "old" not in readme
    details = tables.with_details("<!-- details -->\n<!-- /details -->\n", comparisons)
    assert "clinic_text perplexity" in details
    assert tables.with_comparisons(readme, comparisons) == readme


def test_decisions_are_counted(tmp_path, model_folder):
    times = script("benchmarks/decision_time.py")
    run_file = tiny_runs.write_run(tmp_path, model_folder, method="magnitude", reference=False)
    config = load_run_file(run_file)
    job = prepare(config, tmp_path / "out", resume=False, progress=Progress())
    found = times.measure(job, config, 1)
    assert (found["statistics"], found["batches"], found["passes"], found["is_one_pass"]) == (["magnitude"], 0, 0, True)
    data, model, count = job.checked.data, job.fresh_model(), times.Count()
    batch = data.stream(data.calibration_part, seed=0, batch_size=2).next()
    count.batches.append(batch)
    with times.counting(model, count):
        for _ in range(2):
            model(input_ids=batch["input_ids"]).logits.sum().backward()
    assert count.passes == 2
    assert model(input_ids=batch["input_ids"]).logits is not None
    assert count.passes == 2  # no hook is left behind


def test_card_of_the_embedded_model(tmp_path, monkeypatch):
    card = script("embedded/card.py")
    curve = [{"tokens": 12288 * step, "loss": 8.0 - step / 10} for step in (1, 2, 3, 3, 4)]
    training = {
        "tokens_seen": 60e6,
        "parameters": 6_100_000,
        "seed": 0,
        "held_out_perplexity": {"books": 33.3},
        "loss_curve": curve,
    }
    names = ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size")
    config = dict.fromkeys((*names, "max_position_embeddings", "vocab_size"), 8)
    (tmp_path / "training.json").write_text(json.dumps(training))
    (tmp_path / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("sys.argv", ["card.py", "--model", str(tmp_path)])
    card.main()
    text = (tmp_path / "README.md").read_text()
    assert yaml.safe_load(text.split("---")[1])["license"] == "apache-2.0"
    assert "| books | 33.3 |" in text
    assert "access for free at openstax.org" in text.lower()
    assert (tmp_path / "loss.png").stat().st_size > 1000


def test_decode_benchmark_counts_the_weights_a_token_reads_and_draws_the_right_widths():
    decode = script("benchmarks/decode.py")
    model = tiny.tiny_model("llama3", intermediate_size=256, head_dim=64)
    norms = sum(parameter.numel() for parameter in model.parameters() if parameter.ndim == 1)
    facts = decode.costs(model)
    assert facts["decode"] == facts["parameters"] - norms  # the tied embedding is read once, as the head
    length = decode.TOKENS["prompt_tokens"]
    assert facts["prefill"] > 2 * length * (facts["decode"] - model.lm_head.weight.numel())
    space = spaces.build("width", families.describe(model), model)
    for variant, settings in decode.SUBJECTS["base"]["variants"].items():
        masks = decode.drawn_masks(space, variant, settings)
        kept = {int(masks[group.name].sum()) for group in space.groups if group.kind == "mlp_channel"}
        assert variant != "ragged" or {width % 2 for width in kept} == {1}
        assert variant != "aligned" or {width % 64 for width in kept} == {0}
        assert variant != "uniform" or len(kept) == 1


def test_the_page_of_exports_shows_the_record():
    matrix = script("benchmarks/export_matrix.py")
    assert matrix.page(matrix.load(matrix.RECORD)) == matrix.PAGE.read_text(encoding="utf8")


def test_a_case_that_several_tests_decide_counts_as_the_best():
    matrix = script("benchmarks/export_matrix.py")
    case = {
        "target": "x",
        "family": "llama",
        "space": "width",
        "layout": "ragged",
        "outcome": "impossible",
        "why": "no",
    }
    run = case | {"outcome": "run", "why": ""}
    assert matrix.best([case, run, case]) == [run]
    table = matrix.tables([case, run | {"layout": "uniform"}]).splitlines()
    assert table[2:] == [
        "| family | x, uniform | x, ragged |",
        "| --- | --- | --- |",
        "| llama | run | – (1) |",
        "",
        "1. no",
    ]
