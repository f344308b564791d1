import pytest
from helpers.report_samples import record, scores
from rich.console import Console

from tuneprune.report import markdown_table, rich_table
from tuneprune.report.numbers import (
    bytes_text,
    count_text,
    percent_text,
    scientific_text,
    score_text,
    seconds_text,
)
from tuneprune.report.run.result_rows import compare
from tuneprune.report.run.result_table import html_table


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def rows(markdown):
    return {cells(line)[0]: cells(line)[1:] for line in markdown.splitlines() if line.startswith("|")}


def test_markdown_table_shows_references_methods_and_their_numbers():
    table = rows(markdown_table([record(), record("magnitude", 0.78)]))
    assert list(table) == [
        "model",
        ":---",
        "**clinic-llama-6m (6.00 M parameters)**",
        "dense",
        "dense + LoRA",
        "atp",
        "magnitude + LoRA",
    ]
    assert table["model"][1:3] == ["clinic_text perplexity ↓", "clinic_nli accuracy ↑"]
    assert table["dense + LoRA"] == ["100.0 %", "9.00", "0.900", "0.800", "0.550", "100.0 %"]
    assert table["atp"] == ["60.0 %", "9.47", "0.855", "0.760", "0.522", "95.0 %"]
    assert table["magnitude + LoRA"][-1] == "78.0 %"
    assert table["dense"][-1] == "45.0 %"


def test_every_markdown_row_has_the_same_number_of_cells():
    text = markdown_table([record(), record(model={"id": "a|b", "family": "llama", "parameters": 5})])
    assert len({len(line.replace("\\|", "").split("|")) for line in text.splitlines() if line.startswith("|")}) == 1


def test_one_title_row_for_each_model_and_one_table_for_each_set_of_tasks():
    other = record(model={"id": "hub/other", "family": "qwen2", "parameters": 494_000_000})
    assert markdown_table([record(), other]).count(":---") == markdown_table([record()]).count(":---")
    law = record(scores={"pruned": {"dc_code": {"perplexity": 12.0}}}, relative_performance=None)
    text = markdown_table([record(), other, law])
    assert text.count("| :---") == 2
    assert "**other (494 M parameters)**" in text


def test_seeds_are_averaged_and_the_reference_is_counted_once():
    runs = [record("atp", quality, seed) for seed, quality in enumerate((0.9, 0.95, 1.0))]
    text = markdown_table([*runs, record("random", 0.6)])
    table = rows(text)
    assert table["atp"][-1] == "95.0 ± 5.0 %"
    assert table["atp"][2] == "0.855 ± 0.045"
    assert table["dense + LoRA"][1] == "9.00"
    assert "over 3 seeds; rows without ± have one seed" in text
    assert markdown_table(runs[:1]).rstrip().endswith("One seed.")


def test_the_same_seed_twice_is_not_two_seeds():
    (comparison,) = compare([record(seed=0), record(seed=0)])
    assert comparison.rows[-1].seeds == (0,)


def test_variants_of_a_method_are_told_apart_by_what_differs():
    budget = {"keep": 0.4, "of": "total"}
    runs = [record(), record(decision="static"), record(budget=budget), record("magnitude", space="disp")]
    labels = [row.label for row in compare(runs)[0].rows if row.role == "pruned"]
    assert labels == [
        "atp (keep 60 % of total, decision=dynamic)",
        "atp (keep 60 % of total, decision=static)",
        "atp (keep 40 % of total, decision=dynamic)",
        "magnitude + LoRA",
    ]


def test_a_given_label_is_used():
    assert "ATP, no lasso" in rows(markdown_table([record(label="ATP, no lasso")]))


def test_without_dense_tuned_nothing_is_invented():
    bare = record(scores={"dense": scores(0.5), "pruned": scores(0.9)}, relative_performance=None)
    table = rows(markdown_table([bare]))
    assert "dense + LoRA" not in table
    assert table["dense"][-1] == "–"
    assert table["atp"][-1] == "–"


def test_without_any_scores_the_table_still_says_what_was_kept():
    table = rows(markdown_table([record(scores={}, relative_performance=None)]))
    assert table["atp"] == ["60.0 %", "–"]


def test_no_records_no_table():
    assert markdown_table([]) == ""


def test_rich_table_prints_every_row_even_with_brackets_in_names():
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(rich_table([record(label="[red]x"), record("random", 0.6)]))
    console.file.close()
    text = console.export_text()
    assert "[red]x" in text
    assert "66.7 %" not in text
    assert "60.0 %" in text


def test_html_table_holds_every_metric_and_marks_the_pruned_model():
    text = html_table(record())
    for metric in ("rouge1", "rouge2", "rougeL", "nats_per_byte"):
        assert metric in text
    assert text.count('class="pruned main"') == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (percent_text(0.60004), "60.0 %"),
        (percent_text(None), "–"),
        (count_text(999), "999"),
        (count_text(999_900), "1.00 M"),
        (count_text(8_030_261_248), "8.03 B"),
        (bytes_text(16_000_000), "16.0 MB"),
        (bytes_text(512), "512 B"),
        (seconds_text(0.84), "0.8 s"),
        (seconds_text(200.4), "3 min 20 s"),
        (seconds_text(7500), "2 h 05 min"),
        (scientific_text(0.0), "0"),
        (score_text("perplexity", 1234.5), "1,234"),
        (score_text("perplexity", 123.45), "123.5"),
        (score_text("perplexity", float("inf")), "∞"),
        (score_text("accuracy", 0.8124), "0.812"),
        (score_text("accuracy", float("nan")), "–"),
    ],
)
def test_numbers_as_people_read_them(text, expected):
    assert text == expected
