"""Run files with keys, names and numbers that do not exist; text that is no run file; folders of other runs."""

from e2e.refusals import Row, all_of, holding, set_to


def without(key):
    return lambda case: case.content.pop(key)


def text(says, content):
    """A run file with this text."""
    return Row(says, holding("own.yaml", content), "run {folder}/own.yaml --out {out}")


def override(says, setting):
    return Row(says, command=f"run {{run}} --out {{out}} --set {setting}")


MANY_ALIASES = "".join(f"a{n}: &a{n} [{', '.join(9 * [f'*a{n - 1}'] if n else '012345678')}]\n" for n in range(20))
LITTLE_MEMORY = {"tuneprune.pipeline.checks.free_memory": lambda _: 10**5}
OTHER_RUN = all_of(holding("out/config.yaml", "another: run\n"), holding("out/.lock", ""))
ROWS = {
    "unknown key": Row(["unknown key `budgets`", "Did you mean `budget`?"], set_to("budgets", {"keep": 0.5})),
    "unknown nested key": Row(["`tune.learning_rat`", "Did you mean `learning_rate`?"], set_to("tune.learning_rat", 1)),
    "unknown deep key": Row(["`tune.lora.ranks`", "Did you mean `rank`?"], set_to("tune.lora.ranks", 1)),
    "word of another tool": Row(["unknown key `tune.lr`", "write `tune.learning_rate`"], set_to("tune.lr", 1e-3)),
    "sparsity": Row(["unknown key `budget.sparsity`", "write `budget.keep`", "0.6"], set_to("budget.sparsity", 0.4)),
    "option of a method of another tool": Row(
        ["unknown key `method.pruning_ratio`", "budget.keep"], set_to("method", {"name": "atp", "pruning_ratio": 0.4})
    ),
    "key of another section": Row(["unknown key `keep`", "write `budget.keep`"], set_to("keep", 0.5)),
    "steps and epochs": Row(["`steps` and `epochs` both give the length", "write one"], set_to("tune.epochs", 2)),
    "linear that is not there": Row(
        ["target_modules", "`q`", "self_attn.q_proj", "Use these"], set_to("tune.lora.target_modules", ["q"])
    ),
    "truth for a number": Row(
        ["`tune.batch_size` has to be a number", "Write the number"], set_to("tune.batch_size", True)
    ),
    "home folder alone": Row(["`model` is empty", "Give it a value", "`~/`"], set_to("model", None)),
    "percent as a number": Row(["`budget.keep`", "Write a share as 0.6 or 60%"], set_to("budget.keep", 60)),
    "task that is no list": Row(["`evaluate.tasks` is a list", "put `- `"], set_to("evaluate.tasks", {"path": "x"})),
    "unknown data key": Row(
        ["`data.train.0.wieght`", "Did you mean `weight`?"], set_to("data.train", [{"path": "x", "wieght": 2}])
    ),
    "unknown suite": Row(["`helthcare`", "Did you mean `healthcare`?"], set_to("evaluate", {"suite": "helthcare"})),
    "no evaluation": Row(["suite", "tasks"], set_to("evaluate", {})),
    "suite and tasks": Row(["either `suite`", "or `tasks`"], set_to("evaluate.suite", "clinic")),
    "two tasks of one name": Row(
        ["two tasks are called `clinic_nli`", "another `name`"],
        set_to("evaluate.tasks", [{"source": "clinic_nli", "kind": "nli"}] * 2),
    ),
    "another kind than the source's": Row(
        ["`clinic_nli` is of kind `nli`"], set_to("evaluate.tasks", [{"source": "clinic_nli", "kind": "qa"}])
    ),
    "unknown tracker": Row(["tensorbored", "available"], set_to("tune.trackers", ["tensorbored"])),
    "missing section": Row(["`data` is missing", "Add it"], without("data")),
    "section of wrong type": Row(["`tune`", "3"], set_to("tune", 3)),
    "number out of range": Row(["`tune.steps`", "greater than or equal to 1", "0"], set_to("tune.steps", 0)),
    "negative seed": Row(["`seed`", "greater than or equal to 0", "-1"], set_to("seed", -1)),
    "rank of nothing": Row(["`tune.lora.rank`", "greater than"], set_to("tune.lora.rank", 0)),
    "unknown precision": Row(["`tune.precision`", "'fp32'"], set_to("tune.precision", "fp12")),
    "batch that is a text": Row(["`tune.batch_size`", "integer"], set_to("tune.batch_size", "four")),
    "infinite learning rate": Row(["`tune.learning_rate`", "finite"], set_to("tune.learning_rate", float("inf"))),
    "recover of other length": Row(
        ["recover.max_length=16", "tune.max_length=32"], set_to("recover", {"max_length": 16})
    ),
    "recover of more steps": Row(["recover.steps=9", "tune.steps=6", "counts both"], set_to("recover", {"steps": 9})),
    "recover of epochs": Row(["recover.epochs=2", "tune.steps=6"], set_to("recover", {"epochs": 2})),
    "recover of another batch": Row(
        ["recover.batch_size=2", "tune.batch_size=4"], set_to("recover", {"batch_size": 2})
    ),
    "unknown thing to train": Row(["`tune.train`", "'blocks'", "head"], set_to("tune.train", "head")),
    "more weights to tune than memory": Row(
        ["train=all", "100 kB are free", "Use train=lora"], set_to("recover", {"train": "all"}), replaced=LITTLE_MEMORY
    ),
    "recover: more weights to tune than memory": Row(
        ["train=blocks", "100 kB are free", "Use train=lora"],
        set_to("tune.train", "blocks"),
        "recover {model} {run} --out {out}",
        replaced=LITTLE_MEMORY,
    ),
    "no run file": Row(["nowhere.yaml"], command="run {folder}/nowhere.yaml --out {out}"),
    "folder as a run file": Row(["{folder}"], command="validate {folder}"),
    "device as a run file": Row(["/dev/zero"], command="validate /dev/zero"),
    "tab": text(["own.yaml, line 2", "it is a tab, and YAML is indented with spaces"], "tune:\n\tsteps: 3\n"),
    "override of an entry that is not there": override(
        ["`data.train` is a list of 1", "from 0 to 0"], "data.train.3.path=x"
    ),
    "run file in Latin-1": text(["own.yaml"], "model: größer".encode("latin1")),
    "open bracket": text(["own.yaml, line 2", "malformed YAML"], "model: [a\nspace: width\n"),
    "two colons": text(["own.yaml, line 1", "malformed YAML"], "a: b: c\n"),
    "list": text(["own.yaml", "mapping", "budget"], "- model\n"),
    "empty": text(["own.yaml", "mapping"], ""),
    "number as a key": text(["own.yaml, line 1", "`1` is not a text"], "1: 2\n"),
    "truth as a key": text(["own.yaml, line 1", "`yes` is not a text"], "yes: 1\n"),
    "list as a key": text(["own.yaml, line 1", "a key is not a text"], "? [a]\n: 1\n"),
    "key twice": text(["own.yaml, line 2", "`space` appears twice"], "space: width\nspace: depth\n"),
    "nested key twice": text(["own.yaml, line 4", "`steps` appears twice"], "tune:\n  steps: 1\n  a: 2\n  steps: 3\n"),
    "alias of itself": text(["own.yaml, line 1", "refers to the value that contains it"], "a: &a [*a]\n"),
    "aliases of aliases": text(["values"], MANY_ALIASES),
    "deep nesting": text(["own.yaml, line 1", "more than 40 levels deep"], f"a: {'[' * 5000}"),
    "huge number": text(["own.yaml", "a value cannot be read"], f"a: {'9' * 5000}"),
    "date that is none": text(["own.yaml", "a value cannot be read"], "a: 2026-13-41\n"),
    "code": text(["own.yaml, line 1", "python/object"], "a: !!python/object/apply:os.system [ls]\n"),
    "half of a character": text(["own.yaml, line 1", "half of a surrogate pair"], 'a: "\\ud800"\n'),
    "zero byte": text(["own.yaml", "special characters"], "a: \0\n"),
    "huge text": text(["longer than 262144 characters"], "a: x\n" + "# \n" * 100_000),
    "two documents": text(["own.yaml, line 2", "another document"], "a: 1\n---\na: 2\n"),
    "override of an unknown key": override(["`budget.kep`", "Did you mean `keep`?"], "budget.kep=0.5"),
    "override without a value": override(["--set budget", "key.path=value"], "budget"),
    "override inside of a name": override(["`space` is not a section"], "space.x=1"),
    "override that is no YAML": override(["--set budget.keep=[", "malformed YAML"], "budget.keep=["),
    "folder of something else": Row(["not empty", "Name a new folder"], holding("out/thesis.doc", "mine")),
    "folder of another run": Row(["already holds a run", "--resume"], OTHER_RUN),
    "resuming with another configuration": Row(
        ["another configuration", "name another --out"], OTHER_RUN, "run {run} --out {out} --resume"
    ),
    "out that is a file": Row(["is a file", "Name a folder"], command="run {run} --out {run}"),
    "out inside of a file": Row(["cannot be written"], command="run {run} --out {run}/out"),
    "recover: unknown key": Row(
        ["`tune.stepz`", "Did you mean `steps`?"],
        all_of(set_to("recover", {"stepz": 1})),
        "recover {model} {run} --out {out}",
    ),
}
