"""Miniature command lines to kill, each with the folder that an undisturbed run of it writes."""

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import yaml
from helpers import tiny_runs
from helpers.tiny import layers_for

DROPOUT = {"lora": {"rank": 2, "dropout": 0.1}}
ATP = tiny_runs.METHOD
RUNS = {
    "atp": {"method": ATP, "recover": {"train": "all"}, "export": ["hf", "deci"], "budget": {"per_layer": "uniform"}},
    "atp static": {"method": ATP | {"decision": "static"}, "space": "head_dim"},
    "atp sampled": {"method": ATP | {"decisions": "sampled", "decision_every": 2}},
    "atp without compensation": {"method": ATP | {"compensate": False, "prior": "magnitude"}},
    "atp and compensation": {"method": ATP, "compensate": {"name": "obs", "batches": 2}},
    "atp-paper": {"method": {"name": "atp-paper", "generator_size": 8, "generator_heads": 2}, "space": "disp"},
    "loraprune": {"method": {"name": "loraprune"}},
    "hesso": {"method": {"name": "hesso"}},
    "hesso-cric": {"method": {"name": "hesso-cric"}},
    "pat": {"method": {"name": "pat"}, "space": "residual"},
    "apt": {"method": {"name": "apt"}},
    "disp_llm": {"method": {"name": "disp_llm"}, "space": "disp"},
    "tomoe": {"method": {"name": "tomoe", "prior_batches": 2, "generator_size": 8}, "space": "head_dim"},
    "flap": {"method": {"name": "flap", "batches": 2}},
    "flap, all weights": {"method": {"name": "flap", "batches": 2}, "recover": {"train": "all"}},
    "slicegpt": {"method": {"name": "slicegpt", "batches": 2}, "space": "residual"},
}
"""Run files by name; the first one passes through every phase."""
ONE_SHOT = {"method": {"name": "magnitude"}}


@dataclass
class Scenario:
    """A command line that writes to one folder.

    `again` is added when it is called again; `is_atomic`: its folder is whole or absent at any time; `shows`: its only
    result is the answer that it prints.
    """

    name: str
    method: str
    command: Callable[[Path], tuple]
    again: tuple[str, ...] = ()
    is_atomic: bool = False
    shows: bool = False
    processes: tuple[str, ...] = ("MainProcess",)
    whole: Path = field(default_factory=Path)
    expected: dict = field(default_factory=dict)
    events: list = field(default_factory=list)
    seconds: float = 0.0


def write_run(folder, sections, steps=tiny_runs.TUNE["steps"]):
    """A run file and its model."""
    space = sections.get("space", "width")
    model = tiny_runs.save_model(folder / "base", **layers_for(space), max_position_embeddings=128)
    path = tiny_runs.write_run(folder, model, tune=DROPOUT | {"steps": steps})
    content = yaml.safe_load(path.read_text())
    budget = content["budget"] | sections.get("budget", {})
    if space == "residual":
        budget["keep"] = 0.8
    path.write_text(yaml.safe_dump(content | sections | {"budget": budget}))
    return path


def run(name, folder):
    """`tuneprune run` of one of the run files above."""
    run_file = write_run(folder, RUNS[name])
    return Scenario("run", name, lambda out: ("run", run_file, "--out", out), ("--resume",))


EXPORTS = "deci,gguf" if find_spec("gguf") else "deci"
"""Several targets, if their packages are installed."""
COMMANDS = ("recover", "compress", "export", "plan", "evaluate", "compare")


def command(name, folder, server):
    """One of the other commands, on the result of a run where it needs one."""
    run_file, out = write_run(folder / "run", RUNS["atp"]), folder / "finished"
    assert server.run(("run", run_file, "--out", out), folder / "log") == 0, (folder / "log").read_text()
    base, model, plan = run_file.parent / "base", out / "model", out / "plan"
    one_shot = write_run(folder / "one-shot", ONE_SHOT)
    table = ("compare", one_shot, "--methods", "magnitude,random", "--keep", "0.8,0.6", "--out")
    cells = ("reference-seed0", "magnitude-keep0.8-seed0", "random-keep0.6-seed0")
    known = [
        Scenario("recover", "", lambda out: ("recover", model, run_file, "--out", out), ("--resume",)),
        Scenario("compress", "", lambda out: ("compress", base, "--plan", plan, "--out", out), (), is_atomic=True),
        Scenario("export", "", lambda out: ("export", model, "--to", EXPORTS, "--no-proof", "--out", out)),
        Scenario("plan", "magnitude", lambda out: ("plan", one_shot, "--out", out)),
        Scenario("evaluate", "", lambda _: ("evaluate", model, "--suite", "clinic", "--limit", "1"), shows=True),
        Scenario("compare", "magnitude", lambda out: (*table, out), ("--resume",), processes=("MainProcess", *cells)),
    ]
    return known[COMMANDS.index(name)]
