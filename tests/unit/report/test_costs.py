import pytest
from helpers.report_samples import proof, proof_data, record, speed, spread

from tuneprune.report import model_card
from tuneprune.report.run.costs import (
    MemoryUse,
    SpeedRecord,
    memory_rows,
    memory_sentence,
    speed_sentence,
    twins_sentence,
)
from tuneprune.report.run.details import export_table
from tuneprune.report.run.page import render_page

TWINS = {
    "uniform": {"parameters": 3_600_000, "widths": {"kv_group": 2, "mlp_channel": 395}, "multiple_of": 1},
    "aligned": {"parameters": 3_550_000, "widths": {"kv_group": 2, "mlp_channel": 384}, "multiple_of": 64},
}
EXPORTS = {
    "gguf": {
        "target": "gguf",
        "files": {"model-F16.gguf": 7_000_000, "notes.txt": 10},
        "proof": {
            "status": "run",
            "engine": "llama.cpp",
            "logits": {"max_abs_diff": 1e-3, "max_rel_diff": 2.5e-4},
            "greedy_equal": True,
        },
    },
    "vllm": {"files": {"config.json": 900}, "proof": {"status": "structure", "why": "vllm | is not installed"}},
}


def with_twins(ratio, twin_ratio):
    """Decoding at `ratio` of the dense speed, and twins that decode at `twin_ratio` of it."""
    found = speed(ratio)
    for setting in found["settings"]:
        own = 1.42 if setting["phase"] == "prefill" else twin_ratio
        twin = {"speed": spread(100.0), "ratio": spread(own), "over_pruned": spread(own / ratio)}
        setting["twins"] = dict.fromkeys(TWINS, twin)
    return SpeedRecord.model_validate(found | {"twins": TWINS, "matrices": 43, "odd_matrices": 12})


def memory(**changes):
    def model(scale):
        return {
            "weight_bytes": 23_000_000 * scale // 10,
            "cache_bytes_per_token": 6144 * scale // 10,
            "libraries_bytes": 390_000_000,
            "loaded_bytes": 420_000_000,
            "peaks": [{"batch_size": 1, "bytes": 421_000_000}, {"batch_size": 8, "bytes": 440_000_000}],
        }

    data = {"device": "cpu", "dtype": "float32", "prompt_tokens": 64, "new_tokens": 32}
    return data | {"dense": model(10), "pruned": model(6)} | changes


def test_uneven_widths_are_blamed_where_even_ones_are_faster():
    said = speed_sentence(with_twins(1.01, 1.5))
    assert "not clearly faster in 2 of 4 settings" in said
    assert "The uneven widths are the reason" in said
    assert "decode at batch 1, uniform widths 1.50 times" in said
    assert "uniform widths in multiples of 64 1.50 times" in said
    assert "12 of 43 matrices have a side that is not a multiple of 8" in said
    assert "prefill at batch 1, uniform" not in said


def test_the_size_is_blamed_where_even_widths_are_no_faster_either():
    said = speed_sentence(with_twins(1.01, 1.02))
    assert "The size is the reason" in said
    assert "widths are the reason" not in said


def test_no_reason_is_given_where_the_spread_is_too_wide():
    found = with_twins(1.5, 1.5).model_dump()
    for setting in found["settings"]:
        setting["ratio"] = {"median": 1.5, "low": 0.7, "high": 2.0}
    said = speed_sentence(SpeedRecord.model_validate(found))
    assert "not clearly faster in 4 of 4 settings" in said
    assert "The spread is too wide to tell why" in said
    assert "the reason" not in said


def test_a_missing_twin_is_reported_with_its_reason():
    found = SpeedRecord.model_validate(speed(0.9) | {"twins_missing": "they take 20 GB of memory, more than is free."})
    assert "Uniform widths were not measured for comparison: they take 20 GB" in speed_sentence(found)
    assert twins_sentence(found) == ""


def test_faster_everywhere_needs_no_reason():
    assert speed_sentence(with_twins(1.3, 1.5)) == "The pruned model is faster in every setting: 1.30 to 1.42 times."


def test_card_and_page_show_speed_next_to_the_twins():
    sample = record(speed=with_twins(1.01, 1.5).model_dump())
    for text in (model_card(sample, proof()), str(render_page(sample, None, [], ""))):
        assert "uniform widths in multiples of 64 / dense" in text
        assert "3.55 M with uniform widths in multiples of 64" in text
        assert "not clearly faster in 2 of 4 settings" in text


def test_card_and_page_show_memory():
    found = proof(memory=memory())
    for text in (model_card(record(), found), str(render_page(record(), found, [], ""))):
        for said in ("eights in memory (float32)", "13.8 MB", "3.69 kB", "440 MB", "its libraries alone take 390 MB"):
            assert said in text


def test_memory_that_was_not_measured_is_reported_with_its_reason():
    found = proof(memory=memory(dense=None, problem="the dense folder: the model does not run: MemoryError"))
    assert memory_rows(found.memory) == []
    assert "not measured: the dense folder" in memory_sentence(found.memory)
    assert "not measured: the dense folder" in model_card(record(), found)
    assert memory_sentence(None) == ""


@pytest.mark.parametrize("make", [lambda r, p: model_card(r, p), lambda r, p: str(render_page(r, p, [], ""))])
def test_exports_are_listed_with_how_far_they_were_checked(make):
    text = make(record(), proof(exports=EXPORTS))
    for said in (
        "model-F16.gguf and 1 more",
        "7.00 MB",
        "run (llama.cpp)",
        "2.5e-04",
        "equal",
        "names and shapes, not",
    ):
        assert said in text
    assert "Exports" not in make(record(), proof())


def test_an_export_without_a_run_has_dashes():
    row = export_table(EXPORTS).rows[1]
    assert row == ("vllm", "config.json", "900 B", "names and shapes, not run (vllm | is not installed)", "–", "–")
    assert "vllm \\| is" in model_card(record(), proof(exports=EXPORTS))


def test_an_export_of_rounded_weights_is_also_shown_before_rounding():
    exact = {"logits": {"max_rel_diff": 3e-6}, "greedy_equal": True}
    rounded = EXPORTS["gguf"]["proof"] | {"greedy_equal": False, "in_float32": exact}
    (row,) = export_table({"gguf": EXPORTS["gguf"] | {"proof": rounded}}).rows
    assert row[-2:] == ("2.5e-04 (before rounding: 3.0e-06)", "differ (before rounding: equal)")


def test_proof_keeps_speed_and_memory():
    found = proof(**proof_data(), speed=with_twins(1.0, 1.0).model_dump(), memory=memory())
    again = type(found).from_data(found.model_dump(by_alias=True), "again")
    assert again == found
    assert MemoryUse.model_validate(memory()) == found.memory
