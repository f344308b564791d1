"""The lists of names hold what the registries hold, and no library that works on models is imported for them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tuneprune import export, families, methods
from tuneprune.cli.display import first_line
from tuneprune.data import SUITES
from tuneprune.structure.spaces import SPACES

SOURCES = Path(__file__).parents[2] / "src"
HEAVY = ("torch", "transformers", "peft", "accelerate", "pandas", "datasets", "pyarrow")
LISTS = ("methods", "families", "spaces", "targets", "suites")
WATCHED = f"""
import atexit, sys
from tuneprune.cli.commands import main
atexit.register(lambda: print("imported", sorted({set(HEAVY)!r} & sys.modules.keys()), file=sys.stderr))
main()
"""


def fresh(*arguments, path=SOURCES):
    """The command in a new process, which ends by saying what it imported."""
    return subprocess.run(
        [sys.executable, "-c", WATCHED, *arguments],
        env={**os.environ, "PYTHONPATH": str(path)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("arguments", [*LISTS, "methods --json", "--help", "--version", "methods --help", "run --help"])
def test_lists_and_help_import_no_heavy_library(arguments):
    process = fresh(*arguments.split())
    assert process.returncode == 0, process.stderr
    assert process.stdout
    assert process.stderr == "imported []\n"


@pytest.mark.parametrize("arguments", ["methdos", "methods --jsn", "run"])
def test_mistyped_commands_import_no_heavy_library(arguments):
    process = fresh(*arguments.split())
    assert process.returncode == 2
    assert process.stderr.startswith("tuneprune: ")
    assert process.stderr.endswith("imported []\n")


def registered_methods():
    texts = {}
    for name, method in methods.registry().items():
        base = " Not on a quantised base." if method.needs_weight_gradients else ""
        texts[name] = f"{first_line(method.__doc__)} Spaces: {', '.join(method.spaces)}.{base} {method.paper}"
    for name, method in methods.presets().items():
        default = method().model_dump()
        changed = [f"{key}={value}" for key, value in method.presets[name].items() if value != default[key]]
        texts[name] = f"Preset of {method.name}: {', '.join(changed)}"
    return texts


def registered_targets():
    return {
        name: target.title + (f" (extra `{target.extra}`)" if target.extra else "")
        for name, target in export.registry().items()
    }


def registered_suites():
    return {name: ", ".join(f"{task.name} ({task.metrics[0]})" for task in tasks) for name, tasks in SUITES.items()}


@pytest.mark.parametrize(
    ("command", "registered"),
    [
        ("methods", registered_methods),
        ("families", lambda: {kind: first_line(file.__doc__) for kind, file in families.registry().items()}),
        ("spaces", lambda: {name: first_line(space.__doc__) for name, space in SPACES.items()}),
        ("targets", registered_targets),
        ("suites", registered_suites),
    ],
)
def test_lists_equal_the_registries(command, registered, tuneprune, capsys):
    assert tuneprune(command, "--json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert list(listed.items()) == list(registered().items())  # in the same order


def test_methods_of_other_packages_are_listed(tmp_path):
    (tmp_path / "theirs.py").write_text(
        "from tuneprune.methods.base import Method\n"
        "class Theirs(Method):\n"
        '    """Keep what they like."""\n'
        "    name, paper, spaces = 'theirs', 'https://their.paper', ('width',)\n"
    )
    folder = tmp_path / "theirs-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text("[tuneprune.methods]\ntheirs = theirs\n")
    process = fresh("methods", "--json", path=f"{SOURCES}{os.pathsep}{tmp_path}")
    assert process.returncode == 0, process.stderr
    listed = json.loads(process.stdout)
    assert listed["theirs"] == "Keep what they like. Spaces: width. https://their.paper"
    assert {name: text for name, text in listed.items() if name != "theirs"} == registered_methods()
