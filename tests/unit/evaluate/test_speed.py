import pytest
from helpers.toy_evaluation import toy_model

from tuneprune.errors import ConfigError
from tuneprune.evaluate import measure_speed


def test_two_models_are_compared_in_every_setting():
    dense, pruned = toy_model(), toy_model(intermediate_size=16)
    dense.train()
    speed = measure_speed(
        {"dense": dense, "pruned": pruned}, batch_sizes=(1, 2), prompt_tokens=8, new_tokens=4, repeats=3
    )
    assert [(row["batch_size"], row["phase"]) for row in speed["settings"]] == [
        (1, "prefill"),
        (1, "decode"),
        (2, "prefill"),
        (2, "decode"),
    ]
    for row in speed["settings"]:
        for name in ("dense", "pruned", "ratio"):
            assert 0 < row[name]["low"] <= row[name]["median"] <= row[name]["high"]
    assert (speed["device"], speed["dtype"], speed["repeats"]) == ("cpu", "float32", 3)
    assert speed["threads"] >= 1
    assert dense.training


def test_twins_take_part_in_every_round():
    models = {"uniform": toy_model(intermediate_size=24), "aligned": toy_model(intermediate_size=32)}
    both = {"dense": toy_model(), "pruned": toy_model(intermediate_size=16)}
    speed = measure_speed(both | models, batch_sizes=(1,), repeats=2)
    for row in speed["settings"]:
        assert set(row["twins"]) == set(models)
        for twin in row["twins"].values():
            assert all(0 < twin[name]["low"] <= twin[name]["high"] for name in ("speed", "ratio", "over_pruned"))


def test_lengths_are_shortened_to_the_context():
    speed = measure_speed({"model": toy_model(max_position_embeddings=24)}, batch_sizes=(1,), repeats=1)
    assert speed["prompt_tokens"] + speed["new_tokens"] == 24
    assert set(speed["settings"][0]) == {"batch_size", "phase", "model"}


@pytest.mark.parametrize("wrong", [{"repeats": 0}, {"batch_sizes": (0,)}, {"batch_sizes": ()}])
def test_nothing_to_measure_is_refused(wrong):
    with pytest.raises(ConfigError, match="at least 1"):
        measure_speed({"model": toy_model()}, **wrong)
