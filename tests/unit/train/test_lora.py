import pytest
import torch
from helpers.tiny import VARIANTS, logits, tiny_model
from helpers.tiny_tuning import assert_equal, hooks_of, trainable

from tuneprune import families
from tuneprune.errors import ConfigError
from tuneprune.structure.weights import lora_factors
from tuneprune.train import LoraOptions, inject_lora, merge_lora


def with_lora(variant="llama", seed=0, dtype=torch.float64, **options):
    model = tiny_model(variant, dtype=dtype)
    architecture = families.describe(model)
    inject_lora(model, architecture, LoraOptions(**options), seed)
    return model, architecture


def fill(model):
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("variant", VARIANTS)
def test_merge_leaves_no_trace(variant):
    dense = tiny_model(variant)
    model, architecture = with_lora(variant)
    fill(model)
    tuned = logits(model)
    assert not torch.allclose(tuned, logits(dense))
    merge_lora(model, architecture)
    assert list(model.state_dict()) == list(dense.state_dict())
    assert {name: type(m) for name, m in model.named_modules()} == {n: type(m) for n, m in dense.named_modules()}
    assert vars(model).keys() == vars(dense).keys()
    assert hooks_of(model) == 0
    assert all(parameter.requires_grad for parameter in model.parameters())
    torch.testing.assert_close(logits(model), tuned, rtol=1e-6, atol=1e-6)


def test_merge_twice_and_inject_again():
    model, architecture = with_lora()
    fill(model)
    merge_lora(model, architecture)
    before = logits(model)
    merge_lora(model, architecture)
    inject_lora(model, architecture, LoraOptions(rank=3), 0)
    assert torch.equal(logits(model), before)  # new LoRA changes nothing
    assert lora_factors(model, architecture.blocks[0].attention.out).down.shape[0] == 3


@pytest.mark.parametrize("variant", ["llama", "phi3"])
def test_only_lora_on_every_linear_of_every_block_trains(variant):
    model, architecture = with_lora(variant)
    names = {name.partition(".lora_")[0] for name in trainable(model)}
    assert names == set(architecture.linears())
    assert all(".lora_" in name for name in trainable(model))


def test_seed_alone_decides_the_start():
    torch.manual_seed(1)
    one, _ = with_lora(seed=7)
    torch.manual_seed(2)
    torch.rand(5)
    state = torch.get_rng_state()
    other, _ = with_lora(seed=7)
    assert_equal(trainable(one), trainable(other))
    different, _ = with_lora(seed=8)
    assert not torch.equal(*(next(iter(trainable(m).values())) for m in (one, different)))
    torch.manual_seed(2)
    torch.rand(5)
    assert torch.equal(state, torch.get_rng_state())


def test_scaling():
    model, architecture = with_lora(rank=4, alpha=8)
    assert lora_factors(model, architecture.blocks[0].attention.out).scaling == 2
    model, architecture = with_lora(rank=4)
    assert lora_factors(model, architecture.blocks[0].attention.out).scaling == 1


def test_sixteen_bit_base_gets_float32_lora():
    model, architecture = with_lora(dtype=torch.bfloat16)
    assert {value.dtype for value in trainable(model).values()} == {torch.float32}
    fill(model)
    tuned = logits(model)
    merge_lora(model, architecture)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    torch.testing.assert_close(logits(model), tuned, rtol=0.1, atol=0.1)


@pytest.mark.parametrize(
    ("variant", "names", "parts"),
    [
        ("llama", ["q_proj", "down_proj"], {"q_proj", "down_proj"}),
        ("llama", ["self_attn.v_proj"], {"v_proj"}),
        ("llama", "q_proj, mlp.up_proj", {"q_proj", "up_proj"}),
        ("phi3", ["qkv_proj"], {"qkv_proj"}),
        ("gpt_neox", ["query_key_value"], {"query_key_value"}),
        ("mixtral", ["o_proj"], {"o_proj"}),
    ],
)
def test_lora_is_on_the_linears_that_are_named(variant, names, parts):
    model, architecture = with_lora(variant, target_modules=names)
    tuned = {name.partition(".lora_")[0] for name in trainable(model)}
    assert {path.rpartition(".")[2] for path in tuned} == parts
    assert len(tuned) == len(parts) * len(architecture.blocks)
    fill(model)
    expected = logits(model)
    merge_lora(model, architecture)
    torch.testing.assert_close(logits(model), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["lm_head", "proj", "layers.0.self_attn.q_proj", "q_proj.weight", ""])
def test_names_of_no_linear_are_refused_with_those_there_are(name):
    with pytest.raises(ConfigError, match=r"no linear .* is called .*self_attn\.q_proj, .*mlp\.down_proj"):
        with_lora(target_modules=[name])
