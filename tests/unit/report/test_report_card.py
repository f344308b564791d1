import ast

import pytest
import yaml
from helpers.report_samples import proof, proof_data, record

from tuneprune.report import model_card
from tuneprune.report.recover import RecoverRecord, recover_card
from tuneprune.report.run.card import loading_code


def front_matter(card):
    start, header, _ = card.split("---\n", 2)
    assert start == ""
    return yaml.safe_load(header)


def test_front_matter_is_what_the_hub_reads():
    model = {"id": "meta-llama/Llama-3.2-1B", "family": "llama", "parameters": 1_235_814_400}
    header = front_matter(model_card(record(model=model), proof(), base_licence="llama3.2"))
    assert header["base_model"] == "meta-llama/Llama-3.2-1B"
    assert header["library_name"] == "transformers"
    assert header["license"] == "llama3.2"
    assert {"tuneprune", "atp", "llama"} <= set(header["tags"])


@pytest.mark.parametrize(
    "model",
    [
        {"id": "/srv/models/tiny", "family": "llama", "parameters": 1},
        {"id": "../tiny", "family": "llama", "parameters": 1},
        {"id": "models/tiny", "path": "models/tiny", "family": "llama", "parameters": 1},
    ],
)
def test_a_local_folder_is_reduced_to_its_name_and_not_linked(model):
    card = model_card(record(model=model), proof())
    assert "# tiny, tuned and pruned" in card
    assert "base_model" not in front_matter(card)
    assert "license" not in front_matter(card)
    assert model["id"] not in card


@pytest.mark.parametrize(
    ("model", "linked"),
    [
        ({"id": "gpt2"}, True),
        ({"id": "owner/name"}, True),
        ({"id": "bert-base-uncased", "path": "bert-base-uncased"}, False),
        ({"id": "owner/name", "path": "owner/name"}, False),
        ({"id": "My base [v1]"}, False),
        ({"id": "a--b"}, False),
        ({"id": "owner/" + 100 * "x"}, False),
    ],
)
def test_only_ids_of_the_hub_are_linked(model, linked):
    about = model | {"family": "llama", "parameters": 1}
    scores = {"before": {}, "after": {}}
    content = {"schema": 1, "seed": 0, "model": about, "scores": scores, "proof": proof_data()}
    for card in (model_card(record(model=about), proof()), recover_card(RecoverRecord.from_data(content, "record"))):
        assert front_matter(card).get("base_model") == (model["id"] if linked else None)


def test_a_hostile_name_breaks_neither_the_yaml_nor_the_table():
    name = 'x: "---\n# <script>alert(1)</script> | `y`'
    card = model_card(record(model={"id": name, "family": "llama", "parameters": 1}), proof())
    assert isinstance(front_matter(card), dict)
    assert "<script>" not in card.split("---\n", 2)[2]


def test_remote_code_is_asked_for_only_where_it_is_needed():
    ragged = model_card(record(), proof())
    assert "trust_remote_code=True" in ragged
    assert "`AutoModelForSequenceClassification`, do not load it" in ragged
    stock = proof(loader={"class": "LlamaForCausalLM", "needs_remote_code": False, "host_model_type": "llama"})
    card = model_card(record(), stock)
    assert "trust_remote_code=True" not in card
    assert "stock `LlamaForCausalLM`" in card


@pytest.mark.parametrize("prompt", ['say "hello"\nand go', "it's", "", "x" * 5000])
def test_loading_code_is_python_whatever_the_prompt(prompt):
    sample = proof_data()["generation"] | {"prompt": prompt}
    code = loading_code(proof(generation=sample), 'folder "quoted"')
    ast.parse(code)
    assert len(code) < 1000


def test_card_tells_sizes_scores_proof_and_data():
    card = model_card(record(), proof())
    for text in (
        "6.00 M | 3.60 M | 60.0 %",
        "clinic_summary | rouge2 ↑",
        "**95.0 %**",
        "3.4e-07",
        "clinic_nli, 3000",
    ):
        assert text in card
    assert "somewhere/" not in card
    assert "licence of that model" in card


def test_a_failed_check_is_marked():
    assert "**FAILED**" in model_card(record(), proof(bytes_on_disk={"dense": 1, "pruned": 2}))


def test_card_without_scores_proof_and_data():
    card = model_card(record(scores={}, relative_performance=None, data={}), None)
    for heading in ("## Scores", "## Proof", "## Data"):
        assert heading not in card
    assert "auto_map" in card
