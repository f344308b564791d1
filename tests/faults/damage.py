"""Damage to the files of checkpoints: it is always noticed, and never used for a result."""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from faults import scenarios
from faults.folders import contents, difference
from faults.kills import last_words
from faults.server import KILLED

LOADED = 77
"""Exit status of a run that only loads its state."""
STEPS = (2, 4)
"""Steps of the checkpoints to damage; the runs were killed before their sixth step, which is before a late cut."""
METHODS = ("atp without compensation", "loraprune", "hesso-cric", "apt", "disp_llm", "tomoe", "flap, all weights")
GOOD = {"older one taken", "started anew", "newest is whole", "refused"}
WHICH = ("newest",) * 7 + ("both",) * 2 + ("older",)


@dataclass
class Case:
    """One damage and its outcome."""

    method: str
    which: str
    damages: list[str] = field(default_factory=list)
    to_the_end: bool = False
    outcome: str = ""
    said: str = ""


@dataclass
class KilledRun:
    """A run that was killed after two checkpoints, and the files that it should end with.

    `states` has the step of every state that resuming may start from, by its digest.
    """

    method: str
    command: tuple
    out: Path
    whole: dict
    states: dict
    others: Path


def killed_run(method, server, folder):
    """Kill a run after both checkpoints; another one with another seed gives files to exchange."""
    sections = {"reference": False, "export": ["hf"]}
    run_file = scenarios.write_run(folder, scenarios.RUNS[method] | sections, steps=12)
    out, log = folder / "out", folder / "log"
    command = ("run", run_file, "--out")
    assert server.run((*command, folder / "whole"), log) == 0, log.read_text()
    seeded = (*command, folder / "others", "--set", "seed=1")
    assert server.run((*command, out), log, step=STEPS[-1]) == KILLED, log.read_text()
    assert server.run(seeded, log, step=STEPS[-1]) == KILLED, log.read_text()
    states, rest = {}, folder / "rest"
    for gone in range(len(STEPS) + 1):
        restore(out, rest)
        for step in STEPS[len(STEPS) - gone :]:
            shutil.rmtree(checkpoint(rest, step))
        found = load((*command, rest, "--resume"), server, folder)
        states[found["digest"]] = found["step"]
    assert sorted(states.values()) == [0, *STEPS], "undamaged checkpoints load"
    return KilledRun(method, command, out, contents(folder / "whole"), states, folder / "others")


def load(command, server, folder):
    """The state that a resumed run starts from, or its status where it does not get there."""
    found, log = folder / "loaded.json", folder / "log"
    found.unlink(missing_ok=True)
    status = server.run(command, log, loaded=found)
    return json.loads(found.read_text()) if status == LOADED else {"status": status}


def restore(source, target):
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)


def checkpoint(out, step):
    """The folder of a checkpoint, of the steps before the cut or of those after it."""
    name = f"checkpoints/step-{step:06d}"
    return next((found for found in (out / name, out / "recover" / name) if found.exists()), out / name)


def damage_file(path, killed, step, draw):
    """Damage a file; returns what was done, None where that would not change the file."""
    before, name = path.read_bytes(), path.relative_to(path.parents[1])
    kind = draw.choice(
        ("truncated", "bit flipped", "deleted", "emptied", "zeroed", "longer", "other step", "other run")
    )
    if kind == "deleted":
        path.unlink()
        return f"{name} deleted"
    after = bytearray(before)
    place = draw.randrange(len(before)) if before else 0
    if kind == "truncated":
        after = after[:place]
    elif kind == "emptied":
        after = b""
    elif kind == "longer":
        after += draw.randbytes(1 + place % 64)
    elif kind == "zeroed":
        after[place : place + 64] = bytes(len(after[place : place + 64]))
    elif kind == "bit flipped" and before:
        after[place] ^= 1 << draw.randrange(8)
    elif kind.startswith("other"):
        other = (
            (path.parents[2], next(one for one in STEPS if one != step))
            if kind == "other step"
            else (killed.others, step)
        )
        after = (checkpoint(*other) / path.name).read_bytes()
    if bytes(after) == before:
        return None
    path.write_bytes(after)
    return f"{name} {kind}"


def damaged(killed, server, draw, folder, *, to_the_end):
    """Draw a damage and resume the run; returns the case with its outcome."""
    folder.mkdir(parents=True, exist_ok=True)
    case, out = Case(killed.method, draw.choice(WHICH), to_the_end=to_the_end), folder / "out"
    restore(killed.out, out)
    steps = {"newest": STEPS[-1:], "older": STEPS[:1], "both": STEPS}[case.which]
    for step in steps:
        files = sorted(path for path in checkpoint(out, step).rglob("*") if path.is_file())
        done = None
        while done is None:
            done = damage_file(draw.choice(files), killed, step, draw)
        case.damages.append(done)
    command, log = (*killed.command, out, "--resume"), folder / "log"
    log.unlink(missing_ok=True)
    if to_the_end:
        status = server.run(command, log)
        unequal = difference(killed.whole, contents(out)) if status == 0 else None
        case.outcome = ended(status, unequal, case, steps, log)
    else:
        case.outcome = started(load(command, server, folder), killed, steps, log)
    case.said = last_words(log).replace(str(out), "OUT") if case.outcome == "refused" else ""
    return case


def ended(status, unequal, case, steps, log):
    """The outcome of a run that was resumed to its end."""
    if status != 0:
        return refused(status, log)
    if unequal is not None:
        return f"WRONG: {unequal}"
    return "newest is whole" if case.which == "older" else reported(steps, log)


def started(found, killed, steps, log):
    """The outcome of a run that only loaded its state."""
    if "status" in found:
        return refused(found["status"], log)
    step = killed.states.get(found["digest"])
    if step is None:
        return f"WRONG: starts from a state that was never saved, at step {found['step']}"
    if step in steps:
        return f"WRONG: step {step} is damaged, and is used as if it were not"
    return "newest is whole" if STEPS[-1] not in steps else reported(steps, log)


def reported(steps, log):
    """Check that the log names the damaged checkpoints and the one that is used instead."""
    instead = max((step for step in STEPS if step not in steps), default=None)
    named = [step for step in (*steps, instead) if step is not None and f"step-{step:06d}" not in log.read_text()]
    if named:
        return f"SILENT: the log does not name {', '.join(f'step-{step:06d}' for step in named)}"
    return "older one taken" if instead is not None else "started anew"


def refused(status, log):
    """The outcome of a run that failed: good with a clear error only."""
    text = log.read_text()
    if status == 2 and "tuneprune: " in text and "Traceback" not in text:
        return "refused"
    return f"CRASH: exits with {status}: {last_words(log)}"


def campaign(runs, server, draw, folder, number, *, ends):
    """`number` damages in turns, `ends` of which are resumed to the end of the run."""
    chosen = set(draw.sample(range(number), ends))
    return [
        damaged(runs[index % len(runs)], server, draw, folder, to_the_end=index in chosen) for index in range(number)
    ]
