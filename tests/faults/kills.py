"""Kills at random moments: by the clock, and at the file operations that an undisturbed run of the command does."""

import json
import re
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

from faults.folders import contents, difference, leftovers, phase
from faults.server import KILLED

BY_TIME = 0.4
"""Share of kills by the clock."""
AGAIN = (0, 0, 0, 1, 2)
"""How often a resumed command is killed again."""
HOW = {"open": ("before", "after", "torn"), "fsync": ("before", "torn", "after"), "save_file": ("torn", "after")}


@dataclass
class Row:
    """One command line that was killed, and how it ended."""

    command: str
    method: str
    kills: list[dict] = field(default_factory=list)
    outcome: str = "equal"


def observe(scenario, server, folder):
    """Run the command undisturbed, twice: note its result, its file operations and its time."""
    folder.mkdir(parents=True, exist_ok=True)
    scenario.whole, trace = folder / "whole", folder / "trace"
    fault = {"under": f"{folder.resolve()}/", "trace": str(trace)}
    status = server.run(scenario.command(scenario.whole), folder / "log", fault=fault)
    assert status == 0, (folder / "log").read_text()
    scenario.expected = left_by(scenario, scenario.whole, folder / "log")
    scenario.events = [json.loads(line) for line in trace.read_text().splitlines()] if trace.exists() else []
    started = time.perf_counter()
    status = server.run(scenario.command(folder / "twin"), folder / "log2")
    scenario.seconds = time.perf_counter() - started
    assert status == 0, (folder / "log2").read_text()
    unequal = difference(scenario.expected, left_by(scenario, folder / "twin", folder / "log2"))
    assert unequal is None, f"two runs of {scenario.name} differ even without a kill: {unequal}"
    return scenario


def left_by(scenario, out, log):
    """The files that a command writes, or the answer that it prints."""
    if not scenario.shows:
        return contents(out)
    text = log.read_text()
    return {"answer": json.loads(text[text.index("{\n") :])}


def aim(scenario, draw, out):
    """Draw a moment: a share of the time of the undisturbed run, or one of its file operations."""
    if draw.random() < BY_TIME or not scenario.events:
        return {"at": "time", "share": round(draw.random(), 3)}, None
    process = draw.choice(scenario.processes)
    events = [event for event in scenario.events if event["process"] == process]
    kind = draw.choice(sorted({event["kind"] for event in events}))
    event = draw.choice([event for event in events if event["kind"] == kind])
    how = draw.choice(HOW.get(kind, ("before", "after")))
    told = {"at": f"{how} {kind}", "file": without_process(event["path"]), "process": process}
    return told, {"under": f"{out.parent.resolve()}/", "process": process, "event": event["event"], "how": how}


def without_process(path):
    """A path relative to the folder of the run, without the number of the process that writes it."""
    return re.sub(r"\.\d+\.partial", ".partial", path.partition("/")[2] or path)


def interrupt(scenario, server, draw, folder):
    """Kill the command once or more, let it finish, and compare its files."""
    row, out = Row(scenario.name, scenario.method), folder / "out"
    folder.mkdir(parents=True)
    for attempt in range(1 + draw.choice(AGAIN)):
        told, fault = aim(scenario, draw, out)
        after, log = told["share"] * scenario.seconds if fault is None else None, folder / f"log{attempt}"
        status = server.run(called(scenario, out, again=attempt > 0), log, after=after, fault=fault)
        if scenario.is_atomic and out.exists() and contents(out) != scenario.expected:
            row.outcome = f"half a folder: {difference(scenario.expected, contents(out))}"
            return row
        if not died(status, fault, log):
            break
        row.kills.append(told | {"phase": phase(scenario.name, out)})
    else:
        log = folder / "log"
        status = server.run(called(scenario, out, again=True), log)
    if status != 0:
        row.outcome = f"exits with {status}: {last_words(log)}"
    else:
        row.outcome = difference(scenario.expected, left_by(scenario, out, log) | leftovers(out)) or "equal"
    return row


def called(scenario, out, *, again):
    return (*scenario.command(out), *(scenario.again if again else ()))


def died(status, fault, log):
    """Whether the chosen process was killed; in a comparison it may be the process of a cell."""
    of_cell = fault is not None and fault["process"] != "MainProcess"
    return status == KILLED or (of_cell and status == 2 and "SIGKILL" in log.read_text())


def last_words(log):
    lines = [line for line in log.read_text().splitlines() if line.strip()]
    return lines[-1] if lines else ""


def campaign(scenarios, server, draw, folder: Path, number):
    """`number` interruptions in turns; folders of equal results are deleted."""
    rows = []
    for index in range(number):
        place = folder / f"case{index}"
        row = interrupt(scenarios[index % len(scenarios)], server, draw, place)
        if row.outcome == "equal":
            shutil.rmtree(place)
        rows.append(row)
    return rows
