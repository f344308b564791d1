"""Fuzz targets: a file to change, and the command that reads it."""

import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from helpers import report_samples, tiny_runs
from helpers.tiny import random_masks
from hypothesis import strategies as st

from fuzz.mutations import damaged, json_bytes, json_file, mutated, tensor_file
from tuneprune import export, families
from tuneprune.budget.latency_table import Curve, LatencyTable, shapes_of
from tuneprune.compress import compress
from tuneprune.config import load_run_file
from tuneprune.model.loading import load_model
from tuneprune.structure import spaces
from tuneprune.structure.plan import Plan


@dataclass(frozen=True)
class Target:
    """A file in an otherwise valid folder, and the command line that reads it, with `{}` for the folder."""

    file: str
    content: st.SearchStrategy[bytes]
    command: tuple[str, ...]


@st.composite
def yaml_file(draw, document):
    """A YAML file of a changed document, or a damaged one."""
    text = yaml.safe_dump(document).encode()
    if draw(st.integers(0, 4)) == 0:
        return draw(damaged(text))
    changed = draw(mutated(document))
    try:
        return yaml.safe_dump(changed, allow_unicode=True).encode("utf8", "surrogatepass")
    except RecursionError:  # of the YAML writer, which needs a deeper stack than JSON's
        return json_bytes(changed)


@st.composite
def lines_file(draw, documents):
    """JSON lines, one of which is changed."""
    lines = [json.dumps(document).encode() for document in documents]
    index = draw(st.integers(0, len(lines) - 1))
    lines[index] = draw(json_file(documents[index]))
    return b"\n".join(lines)


def prepared(folder: Path) -> dict[str, Target]:
    """The targets by name; everything that they need is written to `folder`."""
    model = tiny_runs.save_model(folder / "model", max_position_embeddings=128)
    loaded = load_model(str(model), None, torch.device("cpu"))
    architecture = families.describe(loaded)
    space = spaces.build("width", architecture, loaded)
    plan = Plan.from_masks(random_masks(space), space, {"space": "width", "method": "random"})
    plan.save(folder / "plan")
    write_table(folder / "latency.json", space)
    export.write(compress(loaded, architecture, space, plan), tiny_runs.letter_tokenizer(), folder / "ragged")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tiny_runs.make_adapter(folder / "adapter")
    write_runs(folder, model)
    write_record(folder / "run")
    return {**of_models(folder), **of_files(folder)}


def write_table(path: Path, space) -> None:
    kv, mlp = space.groups[0].size, space.groups[1].size
    curves = {"attention": Curve(units=[1, kv], milliseconds=[1, 2]), "mlp": Curve(units=[1, mlp], milliseconds=[1, 3])}
    place = {
        "phase": "decode",
        "engine": "transformers",
        "batch_size": 1,
        "prompt_tokens": 8,
        "device": "cpu",
        "dtype": "float32",
    }
    table = LatencyTable(model=shapes_of(space), threads=1, fixed_ms=1, layer_ms=0.1, **place, **curves)
    path.write_text(table.model_dump_json())


def write_runs(folder: Path, model: Path) -> None:
    content = yaml.safe_load(tiny_runs.write_run(folder, model, method={"name": "magnitude"}).read_text())
    own = {
        "timed": {"budget": {"of": "latency", "keep": 0.8, "table": str(folder / "latency.json")}},
        "adapted": {"model": {"base": str(model), "adapter": str(folder / "adapter")}},
    }
    for name, changes in own.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content | changes))


def write_record(folder: Path) -> None:
    folder.mkdir()
    record = report_samples.record_data() | {"proof": report_samples.proof_data()}
    (folder / "record.json").write_text(json.dumps(record))
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, report_samples.metrics(20))))
    (folder / "config.yaml").write_text("seed: 0\n")


def of_models(folder: Path) -> dict[str, Target]:
    """Files of model folders and adapters."""
    found = {}
    inspect, evaluate = ("inspect", "{}/model"), ("evaluate", "{}/model", "--suite", "clinic", "--limit", "1")
    # refused as soon as everything is read, which saves the tuning
    recover = ("recover", "{}/ragged", "{}/run.yaml", "--out", "{}/run.yaml")
    compressing = ("compress", "{}/model", "--plan", "{}/plan", "--out", "{}/out")
    for name, file, command in (
        ("config.json, inspect", "model/config.json", inspect),
        ("config.json, evaluate", "model/config.json", evaluate),
        ("config.json of a ragged model, recover", "ragged/config.json", recover),
        ("generation_config.json", "model/generation_config.json", compressing),
        ("tokenizer_config.json", "model/tokenizer_config.json", ("validate", "{}/run.yaml")),
        ("tokenizer.json", "model/tokenizer.json", ("validate", "{}/run.yaml")),
        ("adapter_config.json", "adapter/adapter_config.json", ("validate", "{}/adapted.yaml")),
    ):
        found[name] = Target(file, json_file(json.loads((folder / file).read_text())), command)
    for name, file, command in (
        ("weights, inspect", "model/model.safetensors", inspect),
        ("weights, compress", "model/model.safetensors", compressing),
        ("weights, evaluate", "model/model.safetensors", evaluate),
        ("weights of a ragged model, recover", "ragged/model.safetensors", recover),
        ("weights of an adapter", "adapter/adapter_model.safetensors", ("validate", "{}/adapted.yaml")),
    ):
        found[name] = Target(file, tensor_file((folder / file).read_bytes()), command)
    return found


def of_files(folder: Path) -> dict[str, Target]:
    """Run files, plans, tables and records."""
    compressing = ("compress", "{}/model", "--plan", "{}/plan", "--out", "{}/out")
    plan, tensors = folder / "plan" / "plan.json", folder / "plan" / "plan.safetensors"
    metrics = (folder / "run" / "metrics.jsonl").read_text().splitlines()

    def document(name):
        return json.loads((folder / name).read_text())

    run = yaml.safe_load(load_run_file(folder / "run.yaml").to_yaml())  # every existing key
    recover = (
        "recover",
        "{}/ragged",
        "{}/run.yaml",
        "--out",
        "{}/latency.json",
    )  # refused once all is read
    return {
        "run file, validate": Target("run.yaml", yaml_file(run), ("validate", "{}/run.yaml")),
        "run file, recover": Target("run.yaml", yaml_file(run), recover),
        "plan.json": Target("plan/plan.json", json_file(json.loads(plan.read_text())), compressing),
        "plan.safetensors": Target("plan/plan.safetensors", tensor_file(tensors.read_bytes()), compressing),
        "latency table": Target("latency.json", json_file(document("latency.json")), ("validate", "{}/timed.yaml")),
        "record.json": Target("run/record.json", json_file(document("run/record.json")), ("report", "{}/run")),
        "metrics.jsonl": Target("run/metrics.jsonl", lines_file(list(map(json.loads, metrics))), ("report", "{}/run")),
        "config.yaml of a run": Target("run/config.yaml", damaged(b"seed: 0\nmodel: x\n"), ("report", "{}/run")),
    }


def attempt(target: Target, folder: Path, content: bytes, call: Callable[..., int]) -> int:
    """The exit status of the command with this content of the file, which is restored afterwards."""
    path = folder / target.file
    before = path.read_bytes()
    path.write_bytes(content)
    try:
        return call(*(part.replace("{}", str(folder)) for part in target.command))
    finally:
        path.write_bytes(before)
        for made in (folder / "out", folder / ".out.partial"):
            shutil.rmtree(made, ignore_errors=True)
