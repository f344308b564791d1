"""Files that strangers may have written: each is read, or refused in one sentence."""

import campaign
import pytest
from targets import prepared

NAMES = [
    *("run file", "plan.json", "plan.safetensors", "latency table", "record.json", "metrics.jsonl"),
    *(
        "config.yaml of a run",
        "config.json, inspect",
        "config.json, evaluate",
        "config.json of a ragged model, recover",
    ),
    *(
        "generation_config.json",
        "tokenizer_config.json",
        "tokenizer.json",
        "adapter_config.json",
        "weights, inspect",
        "weights, compress",
        "weights, evaluate",
        "weights of a ragged model, recover",
        "weights of an adapter",
    ),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def targets(folder):
    return prepared(folder)


@pytest.mark.parametrize("name", NAMES)
def test_only_typed_errors_come_out(name, targets, folder, monkeypatch):
    assert set(NAMES) == set(targets)
    found = campaign.run(targets[name], folder, campaign.command_line(monkeypatch), campaign.examples(12), seeded=True)
    assert found.total() > 0
