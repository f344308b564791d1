"""A bad record that only one process sees: all processes leave its batch out, as a single process does."""

import json

import pytest
import torch
from e2e.launched import Two
from faults.recorded import record
from helpers import tiny_runs
from helpers.precision import TUNED
from safetensors.torch import load_file, save_file

LETTER = "z"
"""A letter that no word of the generated sentences contains."""
LIKE_ONE = "both as one process alone"
ALIKE = "both alike"
UNLIKE_ONE = ("tomoe", "llm_pruner mix")
"""Methods that draw noise for every token of a process's rows, or leave out the rows next to a bad one as well."""


@pytest.fixture(scope="module")
def broken_folder(tmp_path_factory):
    """A model of finite weights that overflows on one letter: Granite doubles the embeddings."""
    folder = tiny_runs.save_model(tmp_path_factory.mktemp("broken") / "m", "granite", max_position_embeddings=128)
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][tiny_runs.letter_tokenizer().convert_tokens_to_ids(LETTER)] = 3e38
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write_run(folder, model, **sections):
    """A run that sees all records within its steps, including a bad one of each kind."""
    run_file = tiny_runs.write_run(folder, model, reference=False, **sections)
    bad = f"{LETTER} {LETTER}"
    tiny_runs.write_texts(folder / "train.jsonl", [*tiny_runs.sentences(1, 13, length=5), bad])
    tiny_runs.write_texts(folder / "calibration.jsonl", [*tiny_runs.sentences(2, 13, length=5), bad])
    return run_file


def found(out):
    """Bad numbers in the logs and the record, sorted, as the order of records depends on the processes."""
    training = json.loads((out / "record.json").read_text())["training"]
    logs = [log for log in (out / "metrics.jsonl", out / "recover" / "metrics.jsonl") if log.exists()]
    lines = [json.loads(line) for log in logs for line in log.read_text().splitlines()]
    events = [(line["step"], bad["what"], sorted(bad["batch"])) for line in lines for bad in line.get("bad", [])]
    examples = [(event["stage"], event["what"], sorted(event["batch"])) for event in training["bad_examples"]]
    return {"skipped": training["skipped_steps"], "bad": training["bad_numbers"], "log": events, "first": examples}


def alike(found, expected, **tolerance):
    """Whether two processes ended with the same weights and masks; rotations spread a broken row of the embedding."""
    try:
        torch.testing.assert_close(found, expected, equal_nan=True, **tolerance)
    except AssertionError:
        return False
    return True


def title(method):
    return " ".join(map(str, method.values()))


def outcome(folder, model, server, method, space):
    """Compare a run with bad records that only one of its two processes sees with the same run by one process."""
    run_file = write_run(folder, model, method=method, space=space, budget={"keep": 0.7})
    ended = server.run("run", run_file, "--out", folder / "one", log=folder / "log")
    two = Two(server, folder, "run", run_file, "--out", folder / "two")
    ends = [ended, *two.end()]
    if ends != [0, 0, 0]:
        return f"ended with {ends}: {(folder / 'log').read_text()} {two.said()}"
    alone, together = found(folder / "one"), found(folder / "two")
    if alone != together or not alone["skipped"]:
        return f"noted as {together} by two, as {alone} by one"
    weights, *theirs = (torch.load(folder / file) for file in ("one/rank-0.pt", "two/rank-0.pt", "two/rank-1.pt"))
    if not alike(theirs[0], theirs[1], rtol=0, atol=0):
        return "ended with different weights"
    if title(method) in UNLIKE_ONE:
        return ALIKE
    is_same = alike(theirs[0]["masks"], weights["masks"], rtol=0, atol=0)
    is_close = alike(theirs[0]["weights"], weights["weights"], **TUNED)
    return LIKE_ONE if is_same and is_close else "ended with other weights than one process"


def test_bad_record_of_one_process_is_left_out_by_all(tmp_path, broken_folder, server):
    assert outcome(tmp_path, broken_folder, server, {"name": "atp"}, "width") == LIKE_ONE
    seen = found(tmp_path / "two")
    assert seen["bad"] == {"tune": {"calibration": 2, "loss": 1}, "recover": {"loss": 1}}
    stems = {"calibration": "calibration", "loss": "train"}
    assert all(f"{tmp_path / stems[what]}.jsonl:14" in batch for _, what, batch in seen["log"])


METHODS = [
    ({"name": "atp"}, "width"),
    ({"name": "atp", "decisions": "sampled", "regulariser": "lasso", "compensate": False}, "width"),
    ({"name": "loraprune"}, "width"),
    ({"name": "hesso-cric"}, "width"),
    ({"name": "apt"}, "width"),
    ({"name": "pat"}, "residual"),
    ({"name": "disp_llm"}, "disp"),
    ({"name": "tomoe"}, "head_dim"),
    ({"name": "flap"}, "width"),
    ({"name": "cfsp"}, "width"),
    ({"name": "wanda_sp"}, "width"),
    ({"name": "wanda_sp", "sequential": True}, "width"),
    ({"name": "minitron"}, "width"),
    ({"name": "llm_pruner"}, "width"),
    ({"name": "llm_pruner", "criterion": "mix"}, "width"),
    ({"name": "short"}, "depth"),
    ({"name": "slicegpt"}, "residual"),
]


@pytest.mark.campaign
@pytest.mark.parametrize(("method", "space"), METHODS)
def test_bad_record_of_one_process(tmp_path, broken_folder, server, method, space):
    rows = [{"method": title(method), "outcome": outcome(tmp_path, broken_folder, server, method, space)}]
    what = (
        "a training and a calibration record without finite numbers, each in the rows of one of two processes: both"
        " leave out the same batches, count them alike and end with equal weights"
    )
    assert not record("bad numbers, two processes", what, 0, rows, good={LIKE_ONE, ALIKE}, counted="runs")
