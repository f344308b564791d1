"""Bad inputs, and the form of their error messages."""

import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import yaml
from helpers import tiny_runs

ADVICE = re.compile(
    r"\b(add|apply|ask|break|check|choose|continue|delete|download|export|fix|free|give|install|leave|lower|make|mend|move"
    r"|name|order|point|possible|prune|put|quantise|raise|read|remove|rename|restore|run|save|see|set|should|start|take"
    r"|train|unpack|use|write)\b|pip install|Did you mean",
    re.IGNORECASE,
)
"""Words that say what to do, or what is possible."""


class Case:
    """A valid run file and its folder."""

    def __init__(self, folder, model):
        self.folder = folder
        self.content = tiny_runs.run_content(folder, model)

    def model(self, **changes):
        """A copy of the model folder with other values in its config."""
        copy = self.folder / "model"
        shutil.copytree(self.content["model"], copy)
        config = json.loads((copy / "config.json").read_text()) | changes
        (copy / "config.json").write_text(json.dumps(config))
        self.content["model"] = str(copy)
        return copy

    def write(self, text):
        (self.folder / "train.jsonl").write_text(text)

    def run_file(self):
        path = self.folder / "run.yaml"
        path.write_text(yaml.safe_dump(self.content))
        return path


def as_it_was(_):
    """Nothing is wrong with the files."""


@dataclass(frozen=True)
class Row:
    """One bad input: what is wrong with the files of a run, the command that reads it, and parts of the expected error.

    A command may name `{run}`, `{model}`, `{out}` and `{folder}`, where the run file and its data are.
    """

    says: Sequence[str]
    change: Callable[[Case], object] = as_it_was
    command: str = "run {run} --out {out}"
    replaced: Mapping[str, object] | None = None
    """Replacements of parts of the program, by dotted name."""


def set_to(path, value):
    def change(case):
        *parents, leaf = path.split(".")
        section = case.content
        for parent in parents:
            section = section.setdefault(parent, {})
        section[leaf] = value

    return change


def merged(**content):
    """Replace sections of the run file."""
    return lambda case: case.content.update(content)


def of_family(variant, space, method):
    """Use a model of another family, on a space that it does not support."""

    def change(case):
        model = tiny_runs.save_model(case.folder / "model", variant)
        case.content.update(model=str(model), space=space, method={"name": method})

    return change


def holding(name, content):
    """A file in the folder of the run file, such as `out/thesis.doc`."""

    def change(case):
        path = case.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return change


def copied(folder):
    """A copy of the run's model in the folder of the run file, which the run file does not name."""
    return lambda case: shutil.copytree(case.content["model"], case.folder / folder)


def exported(folder, **changes):
    """Such a copy that is marked as an export of tuneprune, with `changes` afterwards.

    Args:
        changes: contents of files, by name, that are written after `export.json`.
    """

    def change(case):
        copy = copied(folder)(case)
        files = {file.name: file.stat().st_size for file in copy.iterdir()}
        (copy / "export.json").write_text(json.dumps({"schema": 1, "target": "hf", "files": files}))
        for name, text in changes.items():
            (copy / name).write_text(text)

    return change


def own_model(case):
    """A copy of the run's model as `model` in the folder of the run file, which the run file names."""
    case.model()


def linked(name, to):
    """A link in the folder of the run file, to another place in it."""
    return lambda case: (case.folder / name).symlink_to(case.folder / to)


def all_of(*changes):
    def change(case):
        for each in changes:
            each(case)

    return change


def assert_refused(capsys, status, fragments):
    """Check that stderr is a single error message with the fragments, and return it."""
    printed = capsys.readouterr()
    messages = [line for line in printed.err.splitlines() if not line.startswith("• ")]
    assert status == 2, printed.err
    assert len(messages) == 1, printed.err
    assert messages[0].startswith("tuneprune: ")
    for fragment in fragments:
        assert fragment in messages[0]
    assert not printed.out
    return messages[0]
