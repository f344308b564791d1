"""A run file that was fine until a test changed it, and what a refusal looks like."""

import json
import shutil

import tiny_runs
import yaml


class Case:
    """A run file that was fine, and its folder."""

    def __init__(self, folder, model):
        self.folder = folder
        self.content = tiny_runs.run_content(folder, model)

    def model(self, **changes):
        """A model folder of its own, with other values in its config."""
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


def set_to(path, value):
    def change(case):
        *parents, leaf = path.split(".")
        section = case.content
        for parent in parents:
            section = section.setdefault(parent, {})
        section[leaf] = value

    return change


def of_family(variant, space, method):
    """Another family's model, in a space that it does not offer."""

    def change(case):
        model = tiny_runs.save_model(case.folder / "model", variant)
        case.content.update(model=str(model), space=space, method={"name": method})

    return change


def assert_refused(capsys, status, fragments):
    error = capsys.readouterr().err
    messages = [line for line in error.splitlines() if not line.startswith("• ")]
    assert status == 2, error
    assert len(messages) == 1, error
    assert messages[0].startswith("tuneprune: ")
    for fragment in fragments:
        assert fragment in messages[0]
