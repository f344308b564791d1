"""What the user can fix: exit status 2, one message that says what, nothing written."""

import json
import shutil

import pytest
import tiny_runs
import yaml
from transformers import GPT2Config


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


def no_weights(case):
    (case.model() / "model.safetensors").unlink()


def no_config(case):
    (case.model() / "config.json").unlink()


def no_tokenizer(case):
    for file in case.model().glob("tokenizer*"):
        file.unlink()


def gpt2(case):
    GPT2Config().save_pretrained(case.model())


def uneven_model(case):
    case.model(pruned={"layers": []})


def norms_behind(case):
    case.content |= {
        "model": str(tiny_runs.save_model(case.folder / "model", "gemma2")),
        "space": "residual",
        "method": {"name": "slicegpt"},
    }


def plain_mlps(case):
    case.content |= {
        "model": str(tiny_runs.save_model(case.folder / "model", "starcoder2")),
        "space": "head_dim",
        "method": {"name": "tomoe"},
    }


def quantised(case):
    case.model(quantization_config={"quant_method": "gptq", "bits": 4})


def other_vocabulary(case):
    case.model(vocab_size=20)


def of_family(variant, space, method):
    """Another family's model, in a space that it does not offer."""

    def change(case):
        model = tiny_runs.save_model(case.folder / "model", variant)
        case.content.update(model=str(model), space=space, method={"name": method})

    return change


def set_to(path, value):
    def change(case):
        *parents, leaf = path.split(".")
        section = case.content
        for parent in parents:
            section = section.setdefault(parent, {})
        section[leaf] = value

    return change


def without(key):
    return lambda case: case.content.pop(key)


def training_text(text):
    return lambda case: case.write(text)


def data_file(name, content):
    def change(case):
        (case.folder / name).write_bytes(content)
        case.content["data"]["train"] = [{"path": str(case.folder / name)}]

    return change


def calibration_is_test(case):
    case.content["data"]["calibration"] = [{"path": str(case.folder / "test.jsonl")}]


def training_holds_test(case):
    case.write((case.folder / "train.jsonl").read_text() + (case.folder / "test.jsonl").read_text())


GOOD = json.dumps({"text": "the cat sat"}) + "\n"
MESSAGES = json.dumps({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}) + "\n"
CASES = {
    "unknown key": (set_to("budgets", {"keep": 0.5}), ["unknown key `budgets`", "Did you mean `budget`?"]),
    "unknown nested key": (set_to("tune.learning_rat", 1), ["`tune.learning_rat`", "Did you mean `learning_rate`?"]),
    "unknown deep key": (set_to("tune.lora.ranks", 1), ["`tune.lora.ranks`", "Did you mean `rank`?"]),
    "unknown data key": (
        set_to("data.train", [{"path": "x", "wieght": 2}]),
        ["`data.train.0.wieght`", "Did you mean `weight`?"],
    ),
    "unknown method option": (set_to("method.temprature", 1), ["method.temprature", "Did you mean `temperature`?"]),
    "unknown method": (set_to("method.name", "atpp"), ["`atpp`", "magnitude", "Did you mean `atp`?"]),
    "unknown space": (set_to("space", "widht"), ["`widht`", "head_dim", "Did you mean `width`?"]),
    "unknown suite": (set_to("evaluate", {"suite": "helthcare"}), ["`helthcare`", "Did you mean `healthcare`?"]),
    "no evaluation": (set_to("evaluate", {}), ["suite", "tasks"]),
    "unknown source": (set_to("data.train", [{"source": "pubmedq"}]), ["`pubmedq`", "Did you mean `pubmedqa`?"]),
    "unknown export": (set_to("export", ["hff"]), ["`hff`", "Did you mean `hf`?"]),
    "planned export": (set_to("export", ["gguf"]), ["`gguf`", "hf"]),
    "unknown tracker": (set_to("tune.trackers", ["tensorbored"]), ["tensorbored", "available"]),
    "missing section": (without("data"), ["`data` is missing"]),
    "section of wrong type": (set_to("tune", 3), ["`tune`", "3"]),
    "number out of range": (set_to("tune.steps", 0), ["`tune.steps`", "greater than or equal to 1", "0"]),
    "infinite learning rate": (set_to("tune.learning_rate", float("inf")), ["`tune.learning_rate`", "finite"]),
    "method option out of range": (set_to("method.temperature", -1), ["method.temperature", "greater than 0", "-1"]),
    "budget of zero": (set_to("budget.keep", 0), ["`budget.keep`", "greater than 0", "0"]),
    "negative budget": (set_to("budget.keep", -0.5), ["`budget.keep`", "greater than 0", "-0.5"]),
    "budget above one": (set_to("budget.keep", 1.5), ["`budget.keep`", "less than or equal to 1", "1.5"]),
    "budget that is no number": (set_to("budget.keep", float("nan")), ["`budget.keep`", "nan"]),
    "budget below reach": (set_to("budget.keep", 0.05), ["budget.keep=0.05", "reach", " to "]),
    "budget below what protected layers leave": (
        set_to("method", {"name": "llm_pruner", "protect_first": 0.5}),
        ["budget.keep=0.6", "method.protect_first=0.5", "goes down to", "Protect less"],
    ),
    "method on a space that it cannot treat": (
        set_to("method", {"name": "short"}),
        ["`short`", "`width`", "supports depth"],
    ),
    "method on norms that it cannot treat": (norms_behind, ["gemma2", "`slicegpt` needs RMSNorms", "`magnitude`"]),
    "method on MLPs that it cannot treat": (plain_mlps, ["starcoder2", "`tomoe` routes gated MLPs only", "`atp`"]),
    "space that the method cannot treat": (
        set_to("space", "experts"),
        ["`atp`", "`experts`", "it supports width", "methods for `experts` are magnitude, random"],
    ),
    "preset on a space that it cannot treat": (
        lambda case: case.content.update(space="depth", method={"name": "hesso-cric"}),
        ["`hesso-cric`", "`depth`", "it supports width, head_dim, disp", "methods for `depth` are atp,"],
    ),
    "keep that a method cannot reach": (
        lambda case: case.content.update(method={"name": "cfsp"}, budget={"keep": 0.4}),
        ["`cfsp` removes MLP channels only", "budget.keep=0.4", "keeps 0.5400", "Raise budget.keep"],
    ),
    "experts of a model without": (
        lambda case: case.content.update(space="experts", method={"name": "magnitude"}),
        ["llama", "`experts` needs a mixture of experts", "Use space `width` or `disp`"],
    ),
    "depth of a mixture": (of_family("mixtral", "depth", "short"), ["mixtral", "`depth`", "Use space `experts`"]),
    "width of a mixture": (of_family("qwen3_moe", "width", "atp"), ["qwen3_moe", "`width`", "Use space `experts`"]),
    "dims of partly rotated heads": (
        of_family("phi", "head_dim", "magnitude"),
        ["phi", "`head_dim` needs RoPE over the whole head", "Use space `width` or `disp`"],
    ),
    "residual stream under LayerNorm": (
        of_family("gpt_neox", "residual", "slicegpt"),
        ["gpt_neox", "`residual` needs RMSNorm", "Use space `width`, `disp` or `depth`"],
    ),
    "compensation in a space without such inputs": (
        lambda case: case.content.update(space="depth", method={"name": "short"}, compensate="obs"),
        ["compensate=obs", "`depth`", "width, head_dim or disp"],
    ),
    "multiple of too much": (set_to("budget.multiple_of", 1000), ["budget.multiple_of=1000", "Use at most"]),
    "too long for the model": (set_to("tune.max_length", 4096), ["tune.max_length=4096", "context of 128"]),
    "recover of other length": (set_to("recover", {"max_length": 16}), ["recover.max_length=16", "tune.max_length=32"]),
    "summary too long for the model": (
        set_to("evaluate", {"tasks": [{"source": "clinic_summary", "max_new_tokens": 128}]}),
        ["clinic_summary", "max_new_tokens=128", "context of 128"],
    ),
    "no model folder": (set_to("model", "./nowhere"), ["no folder ./nowhere", "hub id"]),
    "no adapter": (set_to("model", {"base": "", "adapter": "./nowhere"}), ["no folder ./nowhere"]),
    "model without weights": (no_weights, ["holds no weights", "*.safetensors"]),
    "model without config": (no_config, ["no config.json"]),
    "model without tokenizer": (no_tokenizer, ["tokenizer"]),
    "unsupported family": (gpt2, ["`gpt2`", "llama", "qwen3"]),
    "uneven model": (uneven_model, ["pruned", "dense model"]),
    "quantised model": (quantised, ["quantised", "unquantised"]),
    "tokenizer of another model": (other_vocabulary, ["tokenizer", "20 embeddings"]),
    "missing data file": (set_to("data.train", [{"path": "nowhere.jsonl"}]), ["nowhere.jsonl", "no such data file"]),
    "empty data file": (training_text(""), ["train.jsonl", "no records"]),
    "data file of blank lines": (training_text("\n\n"), ["train.jsonl", "no records"]),
    "unreadable data file": (training_text("\udcff".encode("utf8", "surrogatepass").decode("latin1")), ["train.jsonl"]),
    "data that is not text": (data_file("x.jsonl", b"\xff\xfe\x00{"), ["x.jsonl:1", "UTF-8"]),
    "broken parquet": (data_file("x.parquet", b"PAR1 no"), ["x.parquet", "Parquet"]),
    "unknown data format": (data_file("x.xlsx", b"x"), ["x.xlsx", ".jsonl"]),
    "broken line": (training_text(GOOD * 3 + '{"text": "the c\n' + GOOD), ["train.jsonl:4", "not valid JSON"]),
    "records without usable fields": (training_text('{"body": "x"}\n'), ["train.jsonl:1", "body"]),
    "messages without chat template": (training_text(MESSAGES), ["chat template"]),
    "calibration overlaps test": (calibration_is_test, ["calibration", "test"]),
    "training overlaps test": (training_holds_test, ["train", "test"]),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input(name, tmp_path, model_folder, tuneprune, capsys, monkeypatch):
    monkeypatch.delenv("TUNEPRUNE_DATA", raising=False)
    change, fragments = CASES[name]
    case = Case(tmp_path, model_folder)
    change(case)
    if isinstance(case.content["model"], dict):
        case.content["model"]["base"] = str(model_folder)
    run_file = tmp_path / "run.yaml"
    run_file.write_text(yaml.safe_dump(case.content))
    assert_refused(capsys, tuneprune("run", run_file, "--out", tmp_path / "out"), fragments)
    assert not (tmp_path / "out").exists()


def assert_refused(capsys, status, fragments):
    error = capsys.readouterr().err
    messages = [line for line in error.splitlines() if not line.startswith("• ")]
    assert status == 2, error
    assert len(messages) == 1, error
    assert messages[0].startswith("tuneprune: ")
    for fragment in fragments:
        assert fragment in messages[0]


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        (None, ["Cannot read the run file", "run.yaml"]),
        ("model: [a\nspace: width\n", ["run.yaml, line 2", "malformed YAML"]),
        ("a: b: c\n", ["run.yaml, line 1", "malformed YAML"]),
        ("- model\n", ["run.yaml", "mapping", "budget"]),
        ("", ["run.yaml", "mapping"]),
        ("1: 2\n", ["run.yaml"]),
    ],
)
def test_run_file_itself(text, fragments, tmp_path, tuneprune, capsys):
    run_file = tmp_path / "run.yaml"
    if text is not None:
        run_file.write_text(text)
    assert_refused(capsys, tuneprune("run", run_file, "--out", tmp_path / "out"), fragments)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("override", "fragments"),
    [
        ("budget.kep=0.5", ["`budget.kep`", "Did you mean `keep`?"]),
        ("budget", ["--set budget", "key.path=value"]),
        ("space.x=1", ["`space` is not a section"]),
        ("budget.keep=[", ["--set budget.keep=[", "not YAML"]),
    ],
)
def test_overrides(override, fragments, tmp_path, model_folder, tuneprune, capsys):
    run_file = tiny_runs.write_run(tmp_path, model_folder)
    assert_refused(capsys, tuneprune("run", run_file, "--out", tmp_path / "out", "--set", override), fragments)


def test_out_of_another_run(tmp_path, model_folder, tuneprune, capsys):
    run_file = tiny_runs.write_run(tmp_path, model_folder)
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.doc").write_text("mine")
    assert_refused(capsys, tuneprune("run", run_file, "--out", out), ["not empty", "Name a new folder"])
    assert [file.name for file in out.iterdir()] == ["thesis.doc"]

    (out / "config.yaml").write_text("another: run\n")
    assert_refused(capsys, tuneprune("run", run_file, "--out", out), ["already holds a run", "--resume"])
    assert_refused(capsys, tuneprune("run", run_file, "--out", out, "--resume"), ["another configuration"])
    assert (out / "config.yaml").read_text() == "another: run\n"

    assert_refused(capsys, tuneprune("run", run_file, "--out", run_file), ["is a file"])


def test_incomplete_weights(tmp_path, model_folder, tuneprune, capsys):
    from safetensors.torch import load_file, save_file

    case = Case(tmp_path, model_folder)
    weights = case.model() / "model.safetensors"
    tensors = load_file(weights)
    tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, weights, metadata={"format": "pt"})
    run_file = tmp_path / "run.yaml"
    run_file.write_text(yaml.safe_dump(case.content))
    fragments = ["incomplete", "model.layers.1.mlp.up_proj.weight"]
    assert_refused(capsys, tuneprune("run", run_file, "--out", tmp_path / "out"), fragments)
    assert not (tmp_path / "out").exists()

    weights.write_bytes(b"\x00" * 100)
    assert_refused(capsys, tuneprune("run", run_file, "--out", tmp_path / "out"), ["cannot load"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["inspect", "{model}", "--space", "widht"], ["`widht`", "Did you mean `width`?"]),
        (["inspect", "./nowhere"], ["no folder"]),
        (["evaluate", "{model}", "--suite", "helthcare"], ["`helthcare`", "Did you mean `healthcare`?"]),
        (["evaluate", "./nowhere", "--suite", "clinic"], ["no folder"]),
        (["evaluate", "{model}", "--suite", "clinic", "--limit", "0"], ["`limit`", "greater than 0"]),
        (["report", "{out}"], ["no finished run", "--out"]),
        (["compress", "{model}", "--plan", "{out}", "--out", "{out}"], ["no readable plan"]),
        (
            ["compare", "{run}", "--methods", "atp,magnitud", "--out", "{out}"],
            ["`magnitud`", "Did you mean `magnitude`"],
        ),
        (["compare", "{run}", "--methods", "atp,atp", "--out", "{out}"], ["every method once"]),
        (["compare", "{run}", "--methods", "atp", "--seeds", "0,x", "--out", "{out}"], ["--seeds 0,x", "0,1,2"]),
        (["compare", "{run}", "--methods", "atp", "--seeds", "1,1", "--out", "{out}"], ["--seeds 1,1", "different"]),
        (
            ["compare", "{run}", "--methods", "atp,magnitude:sise=3", "--out", "{out}"],
            ["magnitude:sise=3", "no such option"],
        ),
        (["compare", "{run}", "--methods", "atp,magnitude:8", "--out", "{out}"], ["name:option=value", "`8`"]),
        (
            ["compare", "{run}", "--methods", "atp,random:space=widht", "--out", "{out}"],
            ["random:space=widht", "Did you mean `width`?"],
        ),
        (
            ["compare", "{run}", "--methods", "atp,random:space=disp", "--keep", "0.6,0.02", "--out", "{out}"],
            ["atp at keep 0.02", "reach"],
        ),
        (["compare", "{run}", "--methods", "atp", "--keep", "0.6,x", "--out", "{out}"], ["--keep 0.6,x", "0.8,0.6"]),
        (
            ["compare", "{run}", "--methods", "atp", "--keep", "0.6,1.2", "--out", "{out}"],
            ["--keep 0.6,1.2", "above 0"],
        ),
        (["compare", "{run}", "--methods", "atp", "--against", "flap", "--out", "{out}"], ["--against flap", "atp"]),
        (["compare", "{run}", "--methods", "atp", "--jobs", "0", "--out", "{out}"], ["--jobs 0"]),
        (
            ["compare", "{run}", "--methods", "atp", "--set", "budget.of=prunable", "--out", "{out}"],
            ["budget.of=total"],
        ),
        (
            ["compare", "{run}", "--methods", "atp", "--set", "recover.steps=3", "--out", "{out}"],
            ["recover", "tune.steps"],
        ),
        (["validate", "{run}", "--set", "budget.keep=0.01"], ["reach"]),
    ],
)
def test_other_commands(arguments, fragments, tmp_path, model_folder, tuneprune, capsys):
    run_file = tiny_runs.write_run(tmp_path, model_folder)
    out = tmp_path / "out"
    filled = [argument.format(model=model_folder, out=out, run=run_file) for argument in arguments]
    assert_refused(capsys, tuneprune(*filled), fragments)
    assert not out.exists()


def test_sizes_that_would_differ_are_not_compared(tmp_path, model_folder, tuneprune, capsys):
    run_file = tiny_runs.write_run(tmp_path, model_folder, space="head_dim")
    content = yaml.safe_load(run_file.read_text())
    run_file.write_text(yaml.safe_dump(content | {"method": {"name": "tomoe", "budget_counts": "active"}}))
    arguments = ["compare", run_file, "--methods", "random,tomoe", "--out", tmp_path / "out"]
    assert_refused(capsys, tuneprune(*arguments), ["larger size", "budget_counts=total"])
    assert not (tmp_path / "out").exists()
