"""A dozen of the damaged checkpoints of `make faults`."""

import random

import pytest
from faults import damage

SEED, NUMBER, ENDS = 5, 12, 1


@pytest.mark.slow
def test_damaged_checkpoints_are_noticed(fault_server, tmp_path):
    killed = damage.killed_run("atp without compensation", fault_server, tmp_path / "killed")
    draw = random.Random(SEED)
    cases = damage.campaign([killed], fault_server, draw, tmp_path / "cases", NUMBER, ends=ENDS)
    assert {case.outcome for case in cases} <= damage.GOOD, [case for case in cases if case.outcome not in damage.GOOD]
