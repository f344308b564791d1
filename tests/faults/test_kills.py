"""A few of the kills of `make faults`."""

import random

import pytest
from faults import kills, scenarios

SEED = 5


@pytest.mark.slow
def test_killed_and_resumed_equals_undisturbed(fault_server, tmp_path):
    run = kills.observe(scenarios.run("atp", tmp_path / "atp"), fault_server, tmp_path / "atp")
    rows = kills.campaign([run], fault_server, random.Random(SEED), tmp_path / "cases", 6)
    assert sum(len(row.kills) for row in rows) >= 4, "a campaign without kills shows nothing"
    assert {row.outcome for row in rows} == {"equal"}, [row for row in rows if row.outcome != "equal"]


@pytest.mark.parametrize(("name", "number"), [("compress", 2), pytest.param("plan", 2, marks=pytest.mark.slow)])
def test_killed_commands_are_called_again(fault_server, tmp_path, name, number):
    made = scenarios.command(name, tmp_path, fault_server)
    scenario = kills.observe(made, fault_server, tmp_path / "observed")
    rows = kills.campaign([scenario], fault_server, random.Random(SEED), tmp_path / "cases", number)
    assert {row.outcome for row in rows} == {"equal"}, [row for row in rows if row.outcome != "equal"]
