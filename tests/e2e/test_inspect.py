"""`tuneprune inspect`: what common budgets would leave of a model."""

import json


def test_inspect_says_what_budgets_leave(model_folder, tuneprune, capsys):
    assert tuneprune("inspect", model_folder, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["bytes"] == {"total": 4 * 19616, "stored as": "float32"}
    assert found["budgets"].keys() == {f"keep {keep} of total" for keep in (0.8, 0.6, 0.5)}
    left = found["budgets"]["keep 0.8 of total"]
    assert "parameters" in left["size"]
    assert left["typical widths"].endswith("of 48 MLP channels")
    assert left["exports (free widths)"].startswith("hf (one file of remote code)")
    assert left["exports (uniform widths)"].startswith("hf (stock class)")
