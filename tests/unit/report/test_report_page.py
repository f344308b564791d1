import math
import re

import pytest
from helpers.html_pages import parsed
from helpers.report_samples import metrics, proof, record, scores, speed, widths

from tuneprune.report import Width, write_report
from tuneprune.report.charts import Chart, Series, line_chart, smoothed
from tuneprune.report.run.costs import speed_sentence
from tuneprune.report.run.curves import curves, timeline
from tuneprune.report.run.page import render_page, verdict
from tuneprune.report.run.widths import kind_rows, widths_picture

HOSTILE = '<script>alert("x")</script>"><img src=x onerror=alert(1)>'


def test_the_page_is_written_into_the_run_folder(tmp_path):
    path = write_report(record(), proof(), metrics(), "seed: 0", tmp_path)
    assert path == tmp_path / "report.html"
    parsed(path.read_text(encoding="utf-8"))


def test_the_page_fetches_nothing():
    page = str(render_page(record(), proof(), metrics(), "a: 1"))
    tags = parsed(page)
    assert not {"script", "link", "iframe", "img", "object", "embed"} & {tag for tag, _ in tags}
    assert not [attrs for _, attrs in tags if {"src", "href", "xlink:href", "srcset"} & set(attrs)]
    assert not re.search(r"@import|url\(|https?:", page)


def test_everything_that_comes_from_outside_is_escaped():
    hostile = record(
        model={"id": HOSTILE, "family": HOSTILE, "parameters": 1},
        label=HOSTILE,
        space=HOSTILE,
        scores={"pruned": {HOSTILE: {"accuracy": 0.5}}},
        widths={f"layers.0.{HOSTILE}": {"kind": HOSTILE, "kept": 1, "size": 2}},
        data={HOSTILE: {"sources": [{"source": HOSTILE}], HOSTILE: HOSTILE}},
        environment={"cpu": HOSTILE},
    )
    sample = {"prompt": HOSTILE, "text": HOSTILE, "cached_equals_uncached": True}
    loader = {"class": HOSTILE, "needs_remote_code": False, "host_model_type": HOSTILE}
    page = render_page(hostile, proof(generation=sample, loader=loader), metrics(20), HOSTILE)
    tags = parsed(page)
    assert not {"script", "img"} & {tag for tag, _ in tags}
    assert not [attrs for _, attrs in tags if any(name.startswith("on") for name in attrs)]


def test_the_head_gives_the_verdict():
    page = render_page(record(), proof(), [], "")
    assert "Keeps 60.0 % of all parameters and 95.0 % of the performance of the tuned dense model" in page
    assert "all 5 checks" in page


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (30, 270, "decided in 30 steps, and 270 steps on the smaller model followed"),
        (0, 300, "decided before any tuning, and 300 steps on the smaller model followed"),
        (300, 0, "All 300 steps were taken before the cut"),
    ],
)
def test_the_head_says_when_the_model_was_cut(before, after, said):
    made = record(training={"steps": before, "recover_steps": after})
    assert said in verdict(made, proof())
    assert "steps" not in verdict(record(training={}), proof())


def test_the_head_says_what_was_compared():
    alike = {"max_abs_diff": 1e-9, "max_rel_diff": 1e-9, "dtype": "float32", "tokens": 9}
    assert "The saved model computes the same as the masked one" in verdict(record(), proof())  # of an earlier version
    said = verdict(record(), proof(cut=alike | {"max_rel_diff": 2e-6}, logits=alike))
    assert "cut model computes the same as the masked one, and the saved model the same as the final one" in said
    assert "2.0e-06" in said or "2e-06" in said


def test_a_failed_proof_is_not_hidden():
    broken = proof(bytes_on_disk={"dense": 1, "pruned": 2})
    assert "FAILED: smaller on disk" in verdict(record(), broken)
    page = render_page(record(), broken, [], "")
    assert "1 of 5 checks" in page
    assert "Smaller on disk: failed" in page


def test_without_proof_reference_scores_or_speed_the_page_says_so():
    bare = record(scores={"pruned": scores(0.9)}, relative_performance=None, speed=None, widths={}, data={})
    page = render_page(bare, None, [], "")
    parsed(page)
    assert "has not been checked" in page
    assert "no dense + LoRA reference" in page
    for absent in ("<h2>Speed", "<h2>Training", "<h2>What was kept", "dense + LoRA</th>"):
        assert absent not in page
    assert "Nothing was evaluated" in render_page(record(scores={}, relative_performance=None), None, [], "")


def test_the_proof_inside_the_record_is_used_when_none_is_given():
    assert "all 5 checks" in render_page(record(proof=proof()), None, [], "")


@pytest.mark.parametrize(
    ("ratio", "said"),
    [
        (1.3, "faster in every setting: 1.30 to 1.42 times"),
        (1.01, "not clearly faster in 2 of 4 settings: decode at batch 1, 1.01 times"),
        (0.8, "decode at batch 8, 0.80 times"),
    ],
)
def test_speed_sentence(ratio, said):
    assert said in speed_sentence(record(speed=speed(ratio)).speed)


def test_curves_are_drawn_for_what_was_logged():
    charts = curves(record(), metrics())
    titles = [chart.title for chart in charts]
    assert titles == [
        "Training loss",
        "Calibration loss",
        "Kept share",
        "Budget loss",
        "Group lasso",
        "Mask churn",
    ]
    kept = charts[2]
    assert kept.target == 0.6
    assert [series.label for series in kept.series] == ["decision", "soft masks"]
    assert kept.marks[0][1] == "decision frozen"
    assert charts[4].is_log
    assert curves(record(), []) == []


def test_the_target_is_drawn_in_the_share_that_is_logged():
    prunable = record(budget={"keep": 0.52, "of": "prunable"})
    kept = next(chart for chart in curves(prunable, metrics()) if chart.title == "Kept share")
    assert kept.target == pytest.approx(0.6)
    assert kept.target_label == "target 52 % of prunable"


def test_plain_tuning_next_to_a_search_is_the_reference_curve():
    plain = [{"step": step, "phase": "tune", "loss": 2.0} for step in range(5)]
    labels = [series.label for series in curves(record(), [*plain, *metrics(20)])[0].series]
    assert labels == ["dense + LoRA", "this run"]
    assert [series.label for series in curves(record(), plain)[0].series] == ["this run"]
    given = curves(record(), metrics(20), reference=plain)[0].series
    assert [series.label for series in given] == ["dense + LoRA", "this run"]


def test_a_resumed_run_is_drawn_once_and_recovery_continues_the_steps():
    def entry(step, phase, loss):
        return {"step": step, "phase": phase, "loss": loss}

    logged = [entry(1, "control", 5.0), entry(2, "control", 4.0), entry(3, "frozen", 3.0)]
    logged += [
        entry(2, "control", 4.5),
        entry(3, "frozen", 3.5),
        entry(1, "recover", 2.0),
        entry(2, "recover", 1.0),
    ]
    placed = timeline(logged)
    assert [x for x, _ in placed] == [1, 2, 3, 4, 5]
    assert [one["loss"] for _, one in placed] == [5.0, 4.5, 3.5, 2.0, 1.0]


@pytest.mark.parametrize(
    "points",
    [
        [(1.0, 2.0)],
        [(0.0, 0.0), (5.0, 0.0)],
        [(1.0, 3.0), (2.0, math.nan), (3.0, math.inf), (4.0, 1.0)],
        [(float(x), -1e-9 * x) for x in range(2000)],
        [(1.0, 1e30), (2.0, 1e-30)],
    ],
)
@pytest.mark.parametrize("is_log", [False, True])
def test_a_chart_draws_any_numbers_without_leaving_its_frame(points, is_log):
    drawing = line_chart(Chart("loss", "", (Series("", points),), is_log=is_log))
    assert "nan" not in drawing
    numbers = re.findall(r"[ML](-?[\d.]+),(-?[\d.]+)", drawing)
    assert all(0 <= float(x) <= 476 and 0 <= float(y) <= 236 for x, y in numbers)
    assert len(numbers) <= 310


def test_a_chart_without_finite_points_is_left_out():
    assert line_chart(Chart("loss", "", (Series("", [(1.0, math.nan)]),))) == ""
    assert line_chart(Chart("loss", "", ())) == ""


def test_smoothing_keeps_a_constant_a_line_and_both_ends():
    line = [(float(x), 2.0 * x) for x in range(50)]
    assert [y for _, y in smoothed(line, 10)] == pytest.approx([y for _, y in line])
    assert [y for _, y in smoothed([(0.0, 3.0)] * 9, 4)] == pytest.approx([3.0] * 9)


def test_widths_are_drawn_for_every_group_in_its_layer():
    drawing = widths_picture(record().widths)
    assert drawing.count("<title>") == 16
    assert "layers.3.mlp: " in drawing
    assert "MLP channels" in drawing


def test_dropped_layers_are_drawn_as_gone():
    layers = {f"model.layers.{layer}": {"kind": "block", "kept": int(layer != 1), "size": 1} for layer in range(4)}
    drawing = widths_picture(record(widths=layers).widths)
    assert "model.layers.1: 0 of 1 kept (0.0 %)" in drawing
    assert "Layers" in drawing
    assert "4 when dense" in drawing
    assert "75.0 %" in drawing


def test_two_groups_of_one_kind_in_a_layer_get_rows_of_their_own():
    groups = {
        "model.layers.0.self_attn.read": Width(kind="read", kept=4, size=8),
        "model.layers.0.mlp.read": Width(kind="read", kept=6, size=8),
        "model.layers.1.self_attn.read": Width(kind="read", kept=8, size=8),
        "stream": Width(kind="of_a_later_version", kept=32, size=64),
    }
    rows = kind_rows(groups)
    assert [(row.label, row.place, row.kept, row.size) for row in rows] == [
        ("Residual dims read", "self_attn.read", 12, 16),
        ("Residual dims read", "mlp.read", 6, 8),
        ("Of a later version", "", 32, 64),
    ]


@pytest.mark.parametrize("num_layers", [1, 6, 32, 80, 126])
def test_the_picture_fits_any_depth(num_layers):
    given = record(widths=widths(num_layers)).widths
    drawing = widths_picture(given)
    right = [float(x) + float(w) for x, w in re.findall(r'x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', drawing)]
    assert max(right) <= 168 + 740 + 1
