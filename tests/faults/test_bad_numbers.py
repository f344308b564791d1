"""The campaign of bad numbers: every method with state and every one-shot method, at several steps."""

import pytest
from faults.recorded import record
from helpers.injections import (
    BATCHES,
    GENERATORS,
    GOOD,
    KINDS,
    ONE_SHOT,
    STATEFUL,
    STEPS,
    into_calibration,
    into_decision,
    into_period,
    into_prior,
    into_tuning,
    outcome,
)

CAMPAIGN = "bad numbers"
WHAT = (
    "NaN and Inf in a loss, a gradient, an activation, a training item and the calibration batches of every method:"
    " all weights and states are those before, to the bit, or those of a run without the batch"
)
NUMBERS = {"NaN": float("nan"), "Inf": float("inf"), "-Inf": float("-inf")}
TUNED = {"early": 0, "middle": 2, "late": 5, "last": STEPS - 1}
"""Tuning steps, counted from 0: before any first decision; most methods still decide; few do; none does."""
pytestmark = pytest.mark.campaign


def noted(tmp_path, name, cases):
    """Run injections and record them; each case has a kind, a step, and an injection with its arguments."""
    rows = []
    for kind, step, injection, *arguments in cases:
        for title, number in NUMBERS.items():
            given = [number if argument is NUMBERS else argument for argument in arguments]
            found = outcome(injection, tmp_path / str(len(rows)), *given)
            rows.append({"method": name, "kind": kind, "number": title, "step": step, "outcome": found})
    return record(CAMPAIGN, WHAT, 0, rows, good=GOOD, counted="injections")


@pytest.mark.parametrize("name", STATEFUL)
def test_tuning(tmp_path, name):
    cases = [(kind, when, into_tuning, name, kind, NUMBERS, step) for kind in KINDS for when, step in TUNED.items()]
    assert not noted(tmp_path, name, cases)


@pytest.mark.parametrize("name", GENERATORS)
def test_calibration(tmp_path, name):
    cases = [("calibration item", f"control {step}", into_calibration, name, NUMBERS, step) for step in range(4)]
    if name != "atp-sampled":  # has the same prior as atp
        cases += [("calibration item", f"prior {draw}", into_prior, name, NUMBERS, draw) for draw in range(2)]
    assert not noted(tmp_path, name, cases)


def test_periods(tmp_path):
    cases = [("calibration item", f"period {index}", into_period, "hesso", NUMBERS, index) for index in range(2)]
    assert not noted(tmp_path, "hesso", cases)


@pytest.mark.parametrize("options", ONE_SHOT, ids=lambda options: "-".join(map(str, options.values())))
def test_decision(tmp_path, options):
    items = [("data item", draw) for draw in range(BATCHES)]
    cases = [
        (f"calibration {kind}", f"batch {draw}", into_decision, options, kind, NUMBERS, draw)
        for kind, draw in [("activation", 0), *items]
    ]
    assert not noted(tmp_path, " ".join(map(str, options.values())), cases)
