"""The content of an output folder, in a form in which two runs that should be equal can be compared."""

import json

from safetensors.torch import load_file

TIMED = {"created", "time", "memory", "speed", "environment", "decide_s", "train_s", "peak_bytes"}
"""Keys of records whose values are times or depend on them."""
CLOCKED = {"tokens_per_s", "memory_bytes"}
BY_NAME = ("logs/", "report.html", "table.md", "quality.svg", "README.md")
"""Files with times in them: only their presence is compared."""


def contents(folder):
    """What has to be equal, by the name of every file: its bytes, or its JSON without times."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        is_state = "checkpoints/" in name and "/." not in name  # it is not promised which ones are kept
        if path.is_file() and not is_state and path.name != ".lock":
            found[name] = content(path, name)
    return found


def leftovers(folder):
    """Hidden files and folders next to `folder` from writing it."""
    return {path.name: None for path in folder.parent.glob(f".{folder.name}.*")}


def content(path, name):
    if name.endswith("metrics.jsonl"):
        lines = [json.loads(line) for line in path.read_text(encoding="utf8").splitlines()]
        return [{key: value for key, value in line.items() if key not in CLOCKED} for line in lines]
    if name.endswith(("record.json", "reference.json", "comparison.json", "proof.json")):
        return without_times(json.loads(path.read_text(encoding="utf8")))
    if any(part in name for part in BY_NAME) and not name.startswith("model/"):
        return None
    if name.startswith("scores/"):
        return {key: value.tolist() for key, value in load_file(path).items()}  # next to them are times
    return path.read_bytes()


def without_times(value):
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if key not in TIMED}
    if isinstance(value, list):
        return [without_times(item) for item in value]
    return value


def difference(expected, found):
    """One sentence on how two contents differ; None if they are equal."""
    missing, more = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    changed = [name for name in sorted(expected.keys() & found.keys()) if expected[name] != found[name]]
    kinds = (("lacks", missing), ("has", more), ("differs in", changed))
    return "; ".join(f"{what} {', '.join(names)}" for what, names in kinds if names) or None


def phase(command, folder):
    """The phase that a command had reached, from the files that it left."""
    if command in ("compress", "export"):
        partial = [*folder.parent.glob(f".{folder.name}.partial"), *folder.glob(".*.partial")]
        return "write" if partial else "done" if folder.exists() else "begin"
    if command == "compare":
        cells = sorted((path for path in folder.glob("*-seed*")), key=lambda path: path.stat().st_mtime_ns)
        return phase("run", cells[-1]) if cells else "begin"
    return next(name for name, reached in PHASES if reached(folder))


def scored(folder, *names):
    """Whether one of these scores is known."""
    path = folder / "scores.json"
    known = json.loads(path.read_text(encoding="utf8")) if path.exists() else {}
    return any(name in known for name in names)


def logged(folder, name):
    """Whether a step of this phase was logged."""
    log = folder / "metrics.jsonl"
    return log.exists() and f'"phase": "{name}"' in log.read_text(encoding="utf8")


PHASES = (
    ("done", lambda out: (out / "record.json").exists() or (out / "reference.json").exists()),
    ("report", lambda out: (out / "proof.json").exists() or scored(out, "pruned", "after")),
    ("convert", lambda out: (out / "exports").exists()),
    ("prove", lambda out: (out / "model").exists()),
    ("export", lambda out: (out / ".model.partial").exists()),
    ("recover", lambda out: (out / "recover").exists() or logged(out, "recover")),
    ("cut", lambda out: (out / "plan").exists()),
    ("frozen", lambda out: logged(out, "frozen")),
    ("control", lambda out: logged(out, "control")),
    ("decide", lambda out: (out / "metrics.jsonl").exists() or scored(out, "dense_tuned")),
    ("reference", lambda out: (out / "reference").exists()),
    ("evaluate", lambda out: (out / "config.yaml").exists()),
    ("begin", lambda _: True),
)
"""The phases of a run, last one first, and how to tell that it was reached."""
