"""The loss with the head at labels alone, in parts, is that of all logits: value and gradients, everywhere."""

import pytest
import torch
from accelerate import Accelerator
from helpers.precision import EXACT, within
from helpers.tiny import CASES, VARIANTS, probe_ids, random_masks, tiny_model
from torch.nn.functional import cross_entropy

from tuneprune import families
from tuneprune.calibration.batch import IGNORED
from tuneprune.structure import spaces
from tuneprune.structure.masks import Gates
from tuneprune.train import TuneConfig, output_head
from tuneprune.train.config import LoraOptions
from tuneprune.train.lora import inject_lora
from tuneprune.train.runtime import ModelRuntime, activation_checkpointing


@pytest.fixture(autouse=True)
def _parts_of_four_rows(monkeypatch):
    monkeypatch.setattr(output_head, "MAX_LOGITS", 4 * 64 + 1)


def batch():
    """Two documents in one row, and a row that is mostly a prompt and padding."""
    ids = probe_ids()
    labels = ids.clone()
    labels[0, 5:7] = IGNORED
    labels[1, :6] = IGNORED
    labels[1, 9:] = IGNORED
    positions = torch.arange(12).repeat(2, 1)
    positions[0, 6:] -= 6
    return {"input_ids": ids, "position_ids": positions, "labels": labels}


def plain_loss(model, tokens):
    logits = model(input_ids=tokens["input_ids"], position_ids=tokens["position_ids"], use_cache=False).logits
    wanted = tokens["labels"][:, 1:].reshape(-1)
    logits = logits[:, :-1].reshape(len(wanted), -1)
    return cross_entropy(logits.float(), wanted, ignore_index=IGNORED, reduction="sum")


def runtime_of(model, **options):
    return ModelRuntime(model, TuneConfig(**options), Accelerator(cpu=True))


def with_random_lora(model):
    inject_lora(model, families.describe(model), LoraOptions(rank=2), seed=0)
    torch.manual_seed(7)
    trained = [parameter for name, parameter in model.named_parameters() if "lora_" in name]
    for parameter in trained:
        parameter.data = 0.3 * torch.randn_like(parameter, dtype=model.dtype)
    return trained


def differentiated(compute, inputs):
    loss = compute()
    return [loss.detach(), *torch.autograd.grad(loss / 7, inputs)]


@pytest.mark.usefixtures("full_precision")
@pytest.mark.parametrize("mode", ["masked", "open"])
@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_value_and_gradients_are_those_of_all_logits(case, mode):
    """By soft gates, LoRA, and the weights of the embedding and the head, whether these are one tensor or two."""
    variant, space_name = case
    model = tiny_model(variant)
    trained = with_random_lora(model)
    trained += [model.get_input_embeddings().weight, *model.get_output_embeddings().parameters()]
    space = spaces.build(space_name, families.describe(model), model)
    masks = {name: (0.5 + 0.5 * mask.double()).requires_grad_() for name, mask in random_masks(space).items()}
    used = list(dict.fromkeys([*(p.requires_grad_() for p in trained), *masks.values()]))
    with Gates(model, space)(masks, mode):
        expected = differentiated(lambda: plain_loss(model, batch()), used)
        found = differentiated(lambda: runtime_of(model).summed_loss(batch()), used)
    torch.testing.assert_close(found, expected, **EXACT)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("trains_head", [False, True])
@pytest.mark.parametrize("variant", ["llama", "llama3", "gemma2", "phi", "mixtral"])
def test_value_and_gradients_with_recomputed_activations(variant, trains_head, precision):
    model = tiny_model(variant, dtype=torch.float32)
    trained = with_random_lora(model)
    if trains_head:
        trained += [p.requires_grad_() for p in model.get_output_embeddings().parameters()]
    runtime = runtime_of(model, precision=precision)
    with activation_checkpointing(model.train(), is_on=True):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = plain_loss(model, batch())
        expected = differentiated(lambda: loss, trained)
        found = differentiated(lambda: runtime.summed_loss(batch()), trained)
    bound = {"fp32": 1e-4, "bf16": 0.03}[precision]
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() <= bound * other.norm()
        assert one.dtype == torch.float32


def test_the_whole_batch_is_its_micro_batches():
    model = tiny_model("llama")
    trained, runtime = with_random_lora(model), runtime_of(model, batch_size=2, micro_batch_size=1)
    whole = differentiated(lambda: runtime.summed_loss(batch()), trained)
    parts = [
        differentiated(lambda micro=micro: runtime.summed_loss(micro), trained)
        for micro in runtime.micro_batches(batch())
    ]
    torch.testing.assert_close([sum(part) for part in zip(*parts, strict=True)], whole, **within(1e-6))


def test_a_batch_without_labels_has_no_loss_and_no_gradient():
    model = tiny_model("llama")
    trained = with_random_lora(model)
    tokens = batch()
    tokens["labels"] = torch.full_like(tokens["labels"], IGNORED)
    assert not any(value.any() for value in differentiated(lambda: runtime_of(model).summed_loss(tokens), trained))


def test_hooks_of_the_head_see_all_positions_and_its_logits_are_never_all_made():
    """Statistics of the head's input count tokens as those of every other linear do."""
    model = tiny_model("llama")
    head, sizes, inputs = model.get_output_embeddings(), [], []
    before = head.register_forward_pre_hook(lambda _, x: inputs.append(x[0].shape))
    after = head.register_forward_hook(lambda _, x, y: sizes.append(y.numel()))
    with torch.no_grad():
        loss = runtime_of(model).summed_loss(batch())
    before.remove()
    after.remove()
    assert inputs == [(2, 12, 32)]
    assert sizes == [0]
    torch.testing.assert_close(loss.float(), plain_loss(model, batch()), **within(1e-6))
    assert not head._forward_pre_hooks


@pytest.mark.parametrize("variant", ["llama", "gemma2", "granite", "phi"])
def test_logits_are_those_that_predict_a_label(variant):
    model, tokens = tiny_model(variant), batch()
    with torch.no_grad():
        every = model(input_ids=tokens["input_ids"], position_ids=tokens["position_ids"], use_cache=False).logits
        found = runtime_of(model).logits(tokens)
    assert found.shape == (int((tokens["labels"][:, 1:] != IGNORED).sum()), 64)
    torch.testing.assert_close(found, every[:, :-1][tokens["labels"][:, 1:] != IGNORED], **EXACT)


def test_every_family_is_among_the_cases():
    types = {config.model_type for config, _, _ in VARIANTS.values()}
    assert types == set(families.registry())
