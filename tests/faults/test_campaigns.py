"""The long campaigns of `make faults`."""

import random

import pytest
from faults import damage, kills, scenarios
from faults.recorded import record

SEED = 0
KILLS, DAMAGES, ENDS = 7, 30, 6
"""Cases per method or command, and damaged runs that are resumed to their end."""
KILL = "kill -9"
DAMAGE = "damaged checkpoints"
pytestmark = pytest.mark.campaign


def drawn(name):
    return random.Random(f"{SEED} {name}")


@pytest.mark.parametrize("name", scenarios.RUNS)
def test_killed_runs(fault_server, tmp_path, name):
    run = kills.observe(scenarios.run(name, tmp_path / "run"), fault_server, tmp_path / "run")
    rows = kills.campaign([run], fault_server, drawn(name), tmp_path / "cases", KILLS)
    what = "`run` of every method with state, killed up to three times and resumed: every file as without a kill"
    assert not record(KILL, what, SEED, rows, good={"equal"}, counted="runs")


@pytest.mark.parametrize("name", scenarios.COMMANDS)
def test_killed_commands(fault_server, tmp_path, name):
    made = scenarios.command(name, tmp_path, fault_server)
    scenario = kills.observe(made, fault_server, tmp_path / "observed")
    number = 2 if name == "compare" else KILLS
    rows = kills.campaign([scenario], fault_server, drawn(name), tmp_path / "cases", number)
    what = (
        f"{', '.join(f'`{one}`' for one in scenarios.COMMANDS)}, killed and called again: every file as without a kill"
    )
    assert not record(f"{KILL}, other commands", what, SEED, rows, good={"equal"}, counted="calls")


@pytest.mark.parametrize("name", damage.METHODS)
def test_damaged_checkpoints(fault_server, tmp_path, name):
    killed = damage.killed_run(name, fault_server, tmp_path / "killed")
    cases = damage.campaign([killed], fault_server, drawn(name), tmp_path / "cases", DAMAGES, ends=ENDS)
    what = "files of checkpoints cut, flipped, zeroed, emptied, deleted or exchanged: never used silently"
    assert not record(DAMAGE, what, SEED, cases, good=damage.GOOD)
