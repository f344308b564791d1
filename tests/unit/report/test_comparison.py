"""Intervals and paired differences against numbers calculated by hand, and the rows and texts made from them."""

import math
import statistics

import pytest
from helpers.report_samples import QUALITY, comparison

from tuneprune.errors import DataError
from tuneprune.report import ComparisonRecord, comparison_markdown, comparison_rich
from tuneprune.report.comparison.intervals import Estimate, paired, t_quantile
from tuneprune.report.comparison.page import render_comparison, verdict
from tuneprune.report.comparison.picture import quality_picture
from tuneprune.report.comparison.tables import quality_table, summary_table


def test_t_quantiles_are_the_tables():
    assert [round(t_quantile(freedom), 3) for freedom in (1, 2, 4, 30)] == [12.706, 4.303, 2.776, 2.042]


def test_interval_by_hand():
    # mean 3, s = 2, s / sqrt(3) = 1.1547, t(2) = 4.3027
    found = Estimate.over([1.0, 3.0, 5.0])
    assert found.mean == 3
    assert found.reach == pytest.approx(4.3027 * 2 / math.sqrt(3), rel=1e-4)
    assert (found.low, found.high) == pytest.approx((3 - 4.9683, 3 + 4.9683), rel=1e-4)
    assert not found.excludes_zero


def test_paired_difference_by_hand():
    # differences 5, 4, 6 points: mean 5, s = 1, t(2) / sqrt(3) = 2.4842
    values, others = {0: 0.95, 1: 0.80, 2: 0.66}, {2: 0.60, 0: 0.90, 1: 0.76, 7: 0.1}
    found = paired(values, others)
    assert found.mean == pytest.approx(0.05)
    assert (found.low, found.high) == pytest.approx((0.05 - 0.024842, 0.05 + 0.024842), rel=1e-4)
    assert found.excludes_zero
    # Unpaired, the spread between seeds hides it.
    assert statistics.stdev(values.values()) > 0.1


def test_one_seed_has_no_interval_and_none_in_common_no_difference():
    assert Estimate.over([2.0]) == Estimate(mean=2.0)
    assert paired({0: 1.0}, {0: 0.5}) == Estimate(mean=0.5)
    assert paired({0: 1.0}, {1: 0.5}) is None
    assert Estimate.over([1.0, math.inf]) == Estimate(mean=math.inf, count=2)


def test_rows_average_over_seeds_and_compare_within_them():
    found = comparison()
    dense, tuned, atp, magnitude = found.rows
    assert (dense.role, tuned.role) == ("dense", "dense_tuned")
    assert tuned.relative.mean == 1
    assert dense.relative.mean == pytest.approx(0.45)
    assert tuned.train_s == 60
    assert atp.relative.mean == pytest.approx(0.95)
    assert atp.difference is None
    # 0.90 - 0.95, 0.89 - 0.93, 0.88 - 0.97: mean -0.06, s = 0.026458
    assert magnitude.difference.mean == pytest.approx(-0.06)
    assert magnitude.difference.reach == pytest.approx(4.3027 * 0.0264575 / math.sqrt(3), rel=1e-4)
    assert magnitude.scores["clinic_text"]["perplexity"].mean == pytest.approx(
        statistics.mean(9 / value for value in QUALITY["magnitude"])
    )


def test_perplexities_alone_have_their_own_mean_and_difference():
    found = comparison()
    _, _, atp, magnitude = found.rows
    assert atp.fluency.mean == pytest.approx(statistics.mean(QUALITY["atp"]))
    assert magnitude.fluency_difference == magnitude.task_differences["clinic_text"]


def test_summary_is_over_perplexities_where_tasks_have_some():
    found = comparison(keeps=(0.8, 0.6))
    table = summary_table(found)
    assert "scored by perplexity" in table.title
    assert table.rows[1][2] == "89.0 ± 2.5 %"
    without = found.model_copy(update={"rows": [row.model_copy(update={"fluency": None}) for row in found.rows]})
    assert "scored by perplexity" not in summary_table(without).title


def test_another_reference_method_flips_the_sign():
    rows = comparison(against="magnitude").rows
    assert rows[2].difference.mean == pytest.approx(0.06)
    assert rows[3].difference is None


def test_a_missing_seed_is_reported_and_not_paired():
    found = comparison(drop={("magnitude", 1)}, failed={"magnitude-keep0.6-seed1": "ended by SIGKILL."})
    row = found.rows[-1]
    assert row.seeds == (0, 2)
    assert row.difference.count == 2
    text = comparison_markdown(found)
    assert "magnitude (2 of 3 seeds)" in text
    assert "Failed: magnitude-keep0.6-seed1: ended by SIGKILL." in text


def test_budgets_have_a_table_each_largest_first():
    found = comparison(keeps=(0.5, 0.8))
    assert found.keeps == [0.8, 0.5]
    table = quality_table(found, 0.5)
    assert [row[0] for row in table.rows] == ["dense", "dense + LoRA", "atp", "magnitude"]
    assert table.headers[3] == "clinic_text perplexity ↓"
    assert table.rows[2][-1] == "reference"
    assert table.rows[3][-1] == "-6.0 (-12.6 to +0.6)"
    assert len(comparison_rich(found)) == 2


def test_one_seed_is_reported_without_intervals():
    found = comparison({"atp": (0.95,), "magnitude": (0.9,)})
    assert quality_table(found, 0.6).rows[3][-1] == "-5.0"
    for text in (comparison_markdown(found), str(render_comparison(found, "seed: 0"))):
        assert "One seed" in text
        assert "Student" not in text


def test_page_names_the_best_method_and_whether_it_may_be_chance():
    clear = comparison({"atp": (0.95, 0.93, 0.97), "magnitude": (0.90, 0.88, 0.921)})
    assert verdict(clear).endswith("magnitude is next, 5.0 points behind atp (95 % interval -5.1 to -4.8).")
    behind = comparison(against="magnitude")
    assert "atp is best: 95.0 % of dense + LoRA, 6.0 points ahead of magnitude, which may be chance" in verdict(behind)
    single = comparison({"atp": (0.95,), "magnitude": (0.9,)})
    assert "5.0 points behind atp with one seed" in verdict(single)
    page = str(render_comparison(clear, "seed: 0"))
    assert 'href="atp-keep0.6-seed2/report.html"' in page
    assert "Differences by task" in page


def test_labels_are_escaped():
    found = comparison({"<b>|x": (0.9, 0.8)}, against="<b>|x")
    for text in (str(render_comparison(found, "a: <b>")), str(quality_picture(found, standalone=True))):
        assert "<b>" not in text
    assert "&lt;b&gt;\\|x" in comparison_markdown(found)


def test_picture_shows_every_method_once_a_budget():
    picture = str(quality_picture(comparison({f"m{index}": (0.9, 0.8) for index in range(12)}, "m0", (0.5, 0.8))))
    assert picture.count("<title>") == 24
    assert picture.count('class="interval"') == 24
    assert 'class="method c1 dashed"' in picture


def test_record_reads_back_and_refuses_another_schema(tmp_path):
    found = comparison()
    path = found.save(tmp_path / "comparison.json")
    assert ComparisonRecord.load(path) == found
    path.write_text('{"schema": 2}')
    with pytest.raises(DataError, match="schema 2"):
        ComparisonRecord.load(path)
