"""Files from untrusted sources: each is read, or refused in one sentence."""

import pytest

from fuzz import campaign
from fuzz.targets import prepared

FILES = ("run file, validate", "run file, recover", "plan.json", "plan.safetensors", "latency table", "record.json")
LOGS = ("metrics.jsonl", "config.yaml of a run")
CONFIGS = ("config.json, inspect", "config.json, evaluate", "config.json of a ragged model, recover")
SETTINGS = ("generation_config.json", "tokenizer_config.json", "tokenizer.json", "adapter_config.json")
WEIGHTS = ("weights, inspect", "weights, compress", "weights, evaluate", "weights of a ragged model, recover")
NAMES = [*FILES, *LOGS, *CONFIGS, *SETTINGS, *WEIGHTS, "weights of an adapter"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def targets(folder):
    return prepared(folder)


@pytest.mark.parametrize("name", NAMES)
def test_only_typed_errors_come_out(name, targets, folder, monkeypatch):
    assert set(NAMES) == set(targets)
    counts = {}
    campaign.run(targets[name], folder, campaign.command_line(monkeypatch), campaign.examples(5), 0, counts)
    assert sum(counts.values()) > 0
