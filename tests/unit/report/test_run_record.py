import json
import math

import pytest
from helpers.report_samples import parameters, proof, proof_data, record, record_data, scores

from tuneprune.errors import ConfigError, DataError
from tuneprune.report import Proof, RunRecord


def test_record_round_trip(tmp_path):
    original = record(proof=proof_data())
    loaded = RunRecord.load(original.save(tmp_path / "new" / "record.json"))
    assert loaded == original
    assert loaded.method.hyper_parameters == {"decision": "dynamic", "temperature": 0.4}
    assert loaded.proof == proof()


def test_json_uses_the_documented_names():
    written = json.loads(record(proof=proof_data()).to_json())
    assert written["schema"] == 1
    assert "schema_version" not in written
    assert written["proof"]["loader"]["class"] == "TunedPrunedForCausalLM"


def test_record_can_be_built_in_code_by_either_name():
    data = record_data()
    data["schema_version"] = data.pop("schema")
    assert RunRecord(**data) == record()


def test_not_a_number_survives_and_stays_valid_json(tmp_path):
    odd = {"text": {"perplexity": math.inf, "nats_per_byte": math.nan}}
    path = record(scores={"pruned": odd}).save(tmp_path / "record.json")
    json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    loaded = RunRecord.load(path).scores.pruned["text"]
    assert math.isinf(loaded["perplexity"])
    assert math.isnan(loaded["nats_per_byte"])


def test_saving_leaves_no_other_file_and_replaces_the_old_one(tmp_path):
    path = tmp_path / "record.json"
    record(seed=0).save(path)
    record(seed=7).save(path)
    assert [file.name for file in tmp_path.iterdir()] == ["record.json"]
    assert RunRecord.load(path).seed == 7


def test_a_failed_save_keeps_the_old_file(tmp_path, monkeypatch):
    path = record(seed=3).save(tmp_path / "record.json")
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(ConfigError, match=r"record.json cannot be written: No space left.*Free space"):
            record(seed=4).save(path)
    assert RunRecord.load(path).seed == 3
    assert [file.name for file in tmp_path.iterdir()] == ["record.json"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (json.dumps(record_data() | {"schema": 2}), "schema 2"),
        (json.dumps({key: value for key, value in record_data().items() if key != "schema"}), "schema None"),
        (json.dumps(record_data() | {"sheme": 1}), "`sheme`"),
        (json.dumps({key: value for key, value in record_data().items() if key != "budget"}), "`budget`"),
        (json.dumps(record_data(parameters=parameters() | {"of": "some"})), "`parameters.of`"),
        ("[1, 2]", "one JSON object"),
        ('{"schema": 1,', "cannot be read"),
    ],
)
def test_a_file_that_is_not_a_record_is_refused_in_one_sentence(tmp_path, text, said):
    path = tmp_path / "record.json"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        RunRecord.load(path)
    assert said in str(caught.value)
    assert "record.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.json"):
        Proof.load(tmp_path / "nowhere.json")


def test_empty_scores_count_as_not_evaluated():
    assert record(scores={"dense": {}, "pruned": scores(0.9)}).scores.dense is None


def test_short_name_of_folders_and_hub_ids():
    names = {
        model_id: record(model={"id": model_id, "family": "llama", "parameters": 1}).model.short_name
        for model_id in ("meta-llama/Llama-3.2-1B", "../models/tiny/", "C:\\models\\tiny", "tiny")
    }
    assert list(names.values()) == ["Llama-3.2-1B", "tiny", "tiny", "tiny"]


def test_a_sound_proof_passes_and_shows_its_numbers():
    checks = proof().checks()
    assert proof().is_ok
    text = " ".join(check.detail for check in checks)
    assert "3.4e-07" in text
    assert "512 tokens" in text
    assert "60.00 % of total" in text
    assert [check.name for check in checks if check.passed is None] == ["LoRA left on removed units"]


@pytest.mark.parametrize(
    ("changes", "failed"),
    [
        ({"logits": proof_data()["logits"] | {"max_rel_diff": 1e-3}}, "Reloaded model"),
        ({"logits": proof_data()["logits"] | {"max_rel_diff": float("nan")}}, "Reloaded model"),
        ({"generation": proof_data()["generation"] | {"cached_equals_uncached": False}}, "Generates the same"),
        ({"bytes_on_disk": {"dense": 10, "pruned": 10}}, "Smaller"),
        ({"parameters": parameters() | {"share_total": 0.61}}, "Budget"),
    ],
)
def test_each_fault_fails_its_check(changes, failed):
    broken = proof(**changes)
    assert not broken.is_ok
    names = [check.name for check in broken.checks() if check.passed is False]
    assert len(names) == 1
    assert names[0].startswith(failed)


def test_logit_tolerance_follows_the_precision():
    loose = proof_data()["logits"] | {"max_rel_diff": 4e-3}
    assert not proof(logits=loose).is_ok
    assert proof(logits=loose | {"dtype": "torch.bfloat16"}).is_ok


def test_a_model_that_keeps_everything_may_be_as_large():
    whole = parameters(keep=1.0)
    assert proof(parameters=whole, bytes_on_disk={"dense": 100, "pruned": 104}).is_ok


def test_budget_is_met_within_one_unit_in_its_own_denominator():
    counts = parameters() | {"of": "prunable", "target": 0.52}
    assert proof(parameters=counts).parameters.is_met
    assert not proof(parameters=counts | {"target": 0.6}).parameters.is_met


def test_budget_of_what_one_token_uses_is_checked_and_shown():
    counts = parameters(keep=0.8) | {"target": 0.6, "active_total": 3_600_000, "budget_counts": "active"}
    check = proof(parameters=counts).checks()[0]
    assert check.passed
    assert check.name == "Budget met within one unit, counting what one token uses"
    assert "80.00 % of total parameters kept, 60.00 % requested" in check.detail
    assert "one token uses 60.00 %" in check.detail
    assert not proof(parameters=counts | {"active_total": 3_700_000}).parameters.is_met
    assert not proof(parameters=counts | {"budget_counts": "total"}).parameters.is_met
    prunable = proof(parameters=counts | {"of": "prunable"}).parameters
    assert prunable.active_share == 2_600_000 / 5_000_000
    assert proof().parameters.active_share is None
