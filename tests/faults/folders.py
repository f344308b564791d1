"""What a run leaves in its folder, such that two runs that should be the same can be compared byte by byte."""

import json

from safetensors.torch import load_file

TIMED = {"created", "time", "memory", "speed", "environment", "decide_s", "train_s", "peak_bytes"}
"""Keys of records whose values are times or depend on them."""
CLOCKED = {"tokens_per_s", "memory_bytes"}
BY_NAME = ("logs/", "report.html", "table.md", "quality.svg", "README.md")
"""Files that show times, or hold them: only their presence is compared."""


def contents(folder):
    """Every file by name, as what has to be equal: its bytes, or its JSON without times."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        is_state = "checkpoints/" in name and "/." not in name  # which of them are kept is not promised
        if path.is_file() and not is_state and path.name != ".lock":
            found[name] = content(path, name)
    return found


def beside(folder):
    """What was left beside a folder that is written aside."""
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
        return {key: value.tolist() for key, value in load_file(path).items()}  # beside them stands what they took
    return path.read_bytes()


def without_times(value):
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if key not in TIMED}
    if isinstance(value, list):
        return [without_times(item) for item in value]
    return value


def difference(expected, found):
    """One sentence on how two contents differ, None where they do not."""
    missing, more = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    changed = [name for name in sorted(expected.keys() & found.keys()) if expected[name] != found[name]]
    kinds = (("lacks", missing), ("has", more), ("differs in", changed))
    return "; ".join(f"{what} {', '.join(names)}" for what, names in kinds if names) or None


def phase(command, folder):
    """How far a command had come, from the files that it left."""
    if command in ("compress", "export"):
        partial = [*folder.parent.glob(f".{folder.name}.partial"), *folder.glob(".*.partial")]
        return "write" if partial else "done" if folder.exists() else "begin"
    if command == "compare":
        cells = sorted((path for path in folder.glob("*-seed*")), key=lambda path: path.stat().st_mtime_ns)
        return phase("run", cells[-1]) if cells else "begin"
    return next(name for name, reached in PHASES if reached(folder))


def scored(folder, *names):
    """Whether these scores are known."""
    path = folder / "scores.json"
    known = json.loads(path.read_text(encoding="utf8")) if path.exists() else {}
    return any(name in known for name in names)


def logged(folder, name):
    """Whether a step of this phase was logged whole."""
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
"""How far a run may have come, the last one first, and what shows that it had."""
