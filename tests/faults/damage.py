"""Damage to the files of checkpoints: whatever it is, it is noticed, and never becomes a result."""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from faults import scenarios
from faults.folders import contents, difference
from faults.kills import last_words
from faults.server import KILLED

LOADED = 77
"""Exit status of a run that was only to load its state."""
STEPS = (2, 4)
"""Checkpoints of the runs that are damaged, which were killed before their sixth and last step."""
METHODS = ("atp without compensation", "loraprune", "hesso-cric", "apt", "disp_llm", "tomoe", "flap")
GOOD = {"older one taken", "started anew", "newest is whole", "refused"}
WHICH = ("newest",) * 7 + ("both",) * 2 + ("older",)


@dataclass
class Case:
    """One damage, and what became of it."""

    method: str
    which: str
    damages: list[str] = field(default_factory=list)
    to_the_end: bool = False
    outcome: str = ""
    said: str = ""


@dataclass
class Wreck:
    """A run that was killed after two checkpoints, and what it should come to.

    `states` holds the step of every state that resuming may start from, by its digest.
    """

    method: str
    command: tuple
    out: Path
    whole: dict
    states: dict
    others: Path


def wreck(method, server, folder):
    """Kill a run when both checkpoints are saved; a run with another seed lends its files."""
    run_file = scenarios.write_run(
        folder, scenarios.RUNS[method] | {"reference": False, "recover": None, "export": ["hf"]}
    )
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
    return Wreck(method, command, out, contents(folder / "whole"), states, folder / "others")


def load(command, server, folder):
    """What a resumed run starts from, its status where it does not come so far."""
    found, log = folder / "loaded.json", folder / "log"
    found.unlink(missing_ok=True)
    status = server.run(command, log, loaded=found)
    return json.loads(found.read_text()) if status == LOADED else {"status": status}


def restore(source, target):
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)


def checkpoint(out, step):
    """The folder of a checkpoint; one-shot methods tune where the others do."""
    return out / "checkpoints" / f"step-{step:06d}"


def hurt(path, wrecked, step, draw):
    """Damage a file; what was done, None where it would have been the same file."""
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
            else (wrecked.others, step)
        )
        after = (checkpoint(*other) / path.name).read_bytes()
    if bytes(after) == before:
        return None
    path.write_bytes(after)
    return f"{name} {kind}"


def damaged(wrecked, server, draw, folder, *, to_the_end):
    """One drawn damage, and what resuming makes of it."""
    folder.mkdir(parents=True, exist_ok=True)
    case, out = Case(wrecked.method, draw.choice(WHICH), to_the_end=to_the_end), folder / "out"
    restore(wrecked.out, out)
    steps = {"newest": STEPS[-1:], "older": STEPS[:1], "both": STEPS}[case.which]
    for step in steps:
        files = sorted(path for path in checkpoint(out, step).rglob("*") if path.is_file())
        done = None
        while done is None:
            done = hurt(draw.choice(files), wrecked, step, draw)
        case.damages.append(done)
    command, log = (*wrecked.command, out, "--resume"), folder / "log"
    log.unlink(missing_ok=True)
    if to_the_end:
        status = server.run(command, log)
        unequal = difference(wrecked.whole, contents(out)) if status == 0 else None
        case.outcome = ended(status, unequal, case, steps, log)
    else:
        case.outcome = started(load(command, server, folder), wrecked, steps, log)
    case.said = last_words(log).replace(str(out), "OUT") if case.outcome == "refused" else ""
    return case


def ended(status, unequal, case, steps, log):
    """What became of a run that went on to its end."""
    if status != 0:
        return refused(status, log)
    if unequal is not None:
        return f"WRONG: {unequal}"
    return "newest is whole" if case.which == "older" else said(steps, log)


def started(found, wrecked, steps, log):
    """What became of a run that was only to load its state."""
    if "status" in found:
        return refused(found["status"], log)
    step = wrecked.states.get(found["digest"])
    if step is None:
        return f"WRONG: starts from a state that was never saved, at step {found['step']}"
    if step in steps:
        return f"WRONG: step {step} is damaged, and taken as if it were not"
    return "newest is whole" if STEPS[-1] not in steps else said(steps, log)


def said(steps, log):
    """Whether the user was told which checkpoints are damaged, and which one was taken instead."""
    instead = max((step for step in STEPS if step not in steps), default=None)
    named = [step for step in (*steps, instead) if step is not None and f"step-{step:06d}" not in log.read_text()]
    if named:
        return f"SILENT: nothing is said of {', '.join(f'step-{step:06d}' for step in named)}"
    return "older one taken" if instead is not None else "started anew"


def refused(status, log):
    """A clear error is a good end; anything else is none."""
    text = log.read_text()
    if status == 2 and "tuneprune: " in text and "Traceback" not in text:
        return "refused"
    return f"CRASH: exits with {status}: {last_words(log)}"


def campaign(wrecks, server, draw, folder, number, *, ends):
    """`number` damages in turns, `ends` of them followed to the end."""
    chosen = set(draw.sample(range(number), ends))
    return [
        damaged(wrecks[index % len(wrecks)], server, draw, folder, to_the_end=index in chosen)
        for index in range(number)
    ]
