"""The proof: what a probe holds, what a fresh process reports, and how its failures reach the user."""

import copy
import json
import math
import os

import pytest
import torch
from helpers.tiny import random_masks, tiny_model
from helpers.toy_tokenizer import tiny_tokenizer
from transformers import logging

from tuneprune import export, families
from tuneprune.compress import compress
from tuneprune.errors import DataError, TunePruneError
from tuneprune.export.probes import run_reload
from tuneprune.structure import spaces
from tuneprune.structure.masks import Gates
from tuneprune.structure.plan import Plan

logging.disable_progress_bar()
TEXTS = ["the cat sat on the mat and then the dog ran", "it was happy under the tree"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A ragged export of a tied model with the probe of the masked model and the proof."""
    folder = tmp_path_factory.mktemp("exported") / "model"
    model, tokenizer = tiny_model("llama3", dtype=torch.float32), tiny_tokenizer()
    architecture = families.describe(model)
    space = spaces.build("head_dim", architecture, model)
    masks = random_masks(space)
    with Gates(model, space)(masks):
        probe = export.take_probe(model, tokenizer, TEXTS, rows=3, length=10)
    small = compress(model, architecture, space, Plan.from_masks(masks, space))
    loader = export.write(small, tokenizer, folder)
    return folder, probe, export.prove(folder, probe, needs_remote_code=loader.needs_remote_code), small


def test_proof_says_what_the_contract_asks(exported):
    folder, probe, proof, small = exported
    assert proof["logits"]["tokens"] == 30
    assert proof["logits"]["dtype"] == "float32"
    assert 0 <= proof["logits"]["max_rel_diff"] <= 1e-5
    assert proof["logits"]["max_rel_diff"] == pytest.approx(
        proof["logits"]["max_abs_diff"] / probe.logits.abs().max().item()
    )
    assert proof["generation"]["cached_equals_uncached"] is True
    assert proof["generation"]["prompt"].startswith("the cat sat")
    assert proof["generation"]["text"]
    assert proof["loader"] == {"class": "PrunedLlamaForCausalLM", "needs_remote_code": True, "host_model_type": "llama"}
    assert proof["tokenizer_agrees"] is True
    assert proof["parameters_counted"] == sum(parameter.numel() for parameter in small.parameters())
    assert proof["bytes_on_disk"] == {"pruned": (folder / "model.safetensors").stat().st_size}
    assert json.loads(json.dumps(proof)) == proof


def test_comparison_sees_a_changed_weight_and_a_broken_one(exported):
    _, probe, _, small = exported
    tensors = {"input_ids": probe.input_ids, "logits": probe.logits}
    assert run_reload.compare(small, tensors)["max_rel_diff"] <= 1e-5
    changed = copy.deepcopy(small)
    changed.model.norm.weight.data *= 1.01
    assert run_reload.compare(changed, tensors)["max_rel_diff"] > 1e-3
    changed.model.norm.weight.data[0] = float("nan")
    assert math.isnan(run_reload.compare(changed, tensors)["max_abs_diff"])


def test_folder_that_needs_tuneprune_fails_with_one_sentence(exported, tmp_path):
    folder, probe, _, _ = exported
    leaning = tmp_path / "leaning"
    leaning.mkdir()
    for file in folder.iterdir():
        os.link(file, leaning / file.name)
    shipped = leaning / "modeling_pruned.py"
    text = shipped.read_text()
    shipped.unlink()
    shipped.write_text("import tuneprune\n" + text)
    with pytest.raises(
        TunePruneError, match=r"does not run in a fresh process: ImportError: tuneprune is not available"
    ):
        export.prove(leaning, probe, needs_remote_code=True)


def test_probe_is_the_model_as_it_stands():
    model = tiny_model("llama")
    model.train()
    probe = export.take_probe(model, tiny_tokenizer(), ["the cat"], rows=2, length=5)
    assert model.training
    assert probe.input_ids.tolist() == [[4, 5, 4, 5, 4], [5, 4, 5, 4, 5]]
    assert probe.logits.shape == (2, 5, 64)
    assert (probe.logits.dtype, probe.dtype) == (torch.float32, "float32")
    with torch.no_grad():
        expected = copy.deepcopy(model).eval()(input_ids=probe.input_ids).logits
    torch.testing.assert_close(probe.logits, expected.float())


def test_probe_keeps_to_the_context_of_the_model():
    probe = export.take_probe(
        tiny_model("llama", max_position_embeddings=36), tiny_tokenizer(), TEXTS, rows=1, length=500
    )
    assert probe.input_ids.shape == (1, 36)
    assert len(probe.prompt_ids) + 32 <= 36


def test_probe_names_half_precision():
    probe = export.take_probe(tiny_model("llama", dtype=torch.bfloat16), tiny_tokenizer(), TEXTS, rows=1, length=4)
    assert (probe.dtype, probe.logits.dtype) == ("bfloat16", torch.float32)


def test_texts_without_tokens_are_refused():
    with pytest.raises(DataError, match="have no tokens"):
        export.take_probe(tiny_model("llama"), tiny_tokenizer(), ["", ""])
