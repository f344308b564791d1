"""A user's adapter: every kind of LoRA is merged as PEFT runs it, and refused where it does not fit."""

import itertools
import json

import pytest
import torch
from helpers import tiny_runs
from helpers.sweeps import quick_where
from helpers.tiny import logits, tiny_model
from helpers.tiny_runs import make_adapter
from peft import IA3Config, LoraConfig, TaskType, get_peft_model
from peft.tuners.lora.config import KasaConfig

from tuneprune import families
from tuneprune.errors import ConfigError
from tuneprune.model.loading import load_config, load_model, load_tokenizer, skeleton
from tuneprune.model.location import base_and_adapter
from tuneprune.structure import spaces

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing"),  # peft uses the old name
    pytest.mark.filterwarnings("ignore:.*_pattern keys did not match"),  # peft on packed experts
    pytest.mark.filterwarnings("ignore:.*tie"),  # peft says that it unties embeddings
]
CPU = torch.device("cpu")
OF_EVERY_FAMILY = {
    "linears": {},
    "rank pattern": {"rank_pattern": {r"layers.0.*attn.*": 2}, "alpha_pattern": {r"layers.1.*attn.*": 7}},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "embeddings and head in whole": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "head in whole": {"modules_to_save": ["lm_head"]},
    "norm in whole": {"modules_to_save": ["norm"]},
    "single tokens": {"trainable_token_indices": [3, 4]},
}
FAMILIES = ["llama", "llama3", "mistral", "qwen2", "qwen3", "phi3", "gpt_neox", "mixtral"]
REFUSED_BY_PEFT = {("mixtral", "dora")}  # DoRA does not support packed experts


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases")
    return {variant: str(tiny_runs.save_model(folder / variant, variant)) for variant in FAMILIES}


@pytest.mark.parametrize(
    ("variant", "kind"),
    quick_where(
        lambda variant, kind: variant == "llama3" or kind == "rank pattern",
        itertools.product(FAMILIES, OF_EVERY_FAMILY),
    ),
)
def test_merged_as_it_runs(tmp_path, bases, variant, kind):
    if (variant, kind) in REFUSED_BY_PEFT:
        pytest.skip("peft has no such adapters for this family")
    expected = make_adapter(tmp_path / "adapter", variant, **OF_EVERY_FAMILY[kind])
    model = load_model(bases[variant], str(tmp_path / "adapter"), CPU)
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)
    assert not [name for name, _ in model.named_parameters() if "lora" in name or "base_layer" in name]
    config = load_config(bases[variant], str(tmp_path / "adapter"))  # the check of a run before it loads anything
    assert families.describe(model) == families.describe_config(config)
    space = "experts" if variant == "mixtral" else "disp"
    planned, real = (spaces.build(space, families.describe(model), m) for m in (skeleton(config), model))
    assert planned.fingerprint == real.fingerprint


def test_an_adapter_may_untie_embeddings(tmp_path, bases):
    """Embeddings and head that were trained separately are two tensors afterwards, and both are counted."""
    make_adapter(tmp_path, "llama3", modules_to_save=["lm_head"])
    assert load_config(bases["llama3"]).tie_word_embeddings
    assert not load_config(bases["llama3"], str(tmp_path)).tie_word_embeddings


def grown(folder, variant, rows=72, **options):
    """Save an adapter that was trained after tokens were added; returns the logits of the adapted model."""
    model = tiny_model(variant, dtype=torch.float32)
    model.resize_token_embeddings(rows, mean_resizing=False)
    torch.manual_seed(3)
    adapted = get_peft_model(model, LoraConfig(r=4, task_type="CAUSAL_LM", **options)).eval()
    for name, parameter in adapted.named_parameters():
        if "lora_" in name or "embed" in name or "lm_head" in name:
            parameter.data += 0.1 * torch.randn_like(parameter)
    adapted.save_pretrained(folder, save_embedding_layers=True)
    return logits(adapted)


GROWN = {
    "embeddings in whole": ("llama", {"target_modules": ["o_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}),
    "embeddings beside": ("llama", {"target_modules": ["o_proj"]}),
    "tied embeddings beside": ("llama3", {"target_modules": ["o_proj"]}),
    "lora on both": ("llama", {"target_modules": ["o_proj", "embed_tokens", "lm_head"]}),
}


@pytest.mark.parametrize("name", GROWN)
def test_an_adapter_may_bring_more_embeddings(tmp_path, bases, name):
    variant, options = GROWN[name]
    expected = grown(tmp_path, variant, **options)
    model = load_model(bases[variant], str(tmp_path), CPU)
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)
    config = load_config(bases[variant], str(tmp_path))
    assert config.vocab_size == model.config.vocab_size == 72
    assert families.describe(model) == families.describe_config(config)


def test_the_tokenizer_of_an_adapter_is_used(tmp_path, bases):
    make_adapter(tmp_path)
    tokenizer = tiny_runs.letter_tokenizer()
    tokenizer.chat_template = "{{ messages[0]['content'] }} of the adapter"
    tokenizer.add_tokens(["<new>"])
    config = load_config(bases["llama"], str(tmp_path))
    assert load_tokenizer(bases["llama"], config, str(tmp_path)).chat_template is None  # it has none
    tokenizer.save_pretrained(tmp_path)
    found = load_tokenizer(bases["llama"], config, str(tmp_path))
    assert found.chat_template == tokenizer.chat_template
    assert found.convert_tokens_to_ids("<new>") == 30


def test_the_folder_of_an_adapter_names_its_base(tmp_path, bases):
    make_adapter(tmp_path)
    settings = tmp_path / "adapter_config.json"
    content = json.loads(settings.read_text())
    settings.write_text(json.dumps(content | {"base_model_name_or_path": bases["llama"]}))
    assert base_and_adapter(str(tmp_path)) == {"base": bases["llama"], "adapter": str(tmp_path)}
    with pytest.raises(ConfigError, match=rf"is an adapter.*base: {bases['llama']}, adapter: {tmp_path}"):
        load_config(str(tmp_path))
    settings.write_text(json.dumps(content | {"base_model_name_or_path": "/elsewhere/llama"}))
    with pytest.raises(ConfigError, match=r"its base, /elsewhere/llama, is not on this machine\. Write `model:"):
        base_and_adapter(str(tmp_path))


REFUSED = {
    "wider model": ("llama", {"intermediate_size": 64}, {}, ["does not belong", "x"]),
    "longer model": ("llama", {"num_hidden_layers": 4}, {}, ["does not belong", "no place for", "layers.2"]),
    "shorter model": (
        "llama",
        {"num_hidden_layers": 1},
        {"target_modules": ["q_proj"]},
        ["does not belong", "lacks", "layers.1"],
    ),
    "other family": ("phi3", {}, {"target_modules": ["qkv_proj"]}, ["does not belong", "qkv_proj"]),
    "other vocabulary": (
        "llama",
        {"vocab_size": 70},
        {"modules_to_save": ["lm_head"]},
        ["lm_head: 70", "64 tokens", "save_embedding_layers"],
    ),
    "another task": ("llama", {}, {"task_type": TaskType.SEQ_CLS}, ["the task SEQ_CLS", "causal language models"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(tmp_path, bases, name):
    variant, changes, options, fragments = REFUSED[name]
    make_adapter(tmp_path / "adapter", variant, changes, **options)
    with pytest.raises(ConfigError) as caught:
        load_config(bases["llama"], str(tmp_path / "adapter"))
    for fragment in (str(tmp_path / "adapter"), *fragments):
        assert fragment in str(caught.value)


@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
def test_lora_on_tied_embeddings_is_refused(tmp_path, bases, target):
    make_adapter(tmp_path, "llama3", target_modules=[target, "o_proj"])
    with pytest.raises(ConfigError, match="one tensor in this model"):
        load_config(bases["llama3"], str(tmp_path))


KEPT_STARTS = [False, "gaussian", "orthogonal", "eva", "mica", "pissa", "olora"]
LOST_STARTS = {
    "pissa_niter_4": {},
    "corda": {"corda_config": {}},
    "lora_ga": {"lora_ga_config": {}},
    "loftq": {"loftq_config": {"loftq_bits": 4, "loftq_iter": 1}},
    "of_tomorrow": {},
}


@pytest.mark.filterwarnings("ignore:.*eva")  # peft, about an initialisation without data
@pytest.mark.parametrize("start", KEPT_STARTS)
def test_initialisations_that_keep_the_base_or_can_be_repeated_are_exact(tmp_path, bases, start):
    expected = make_adapter(tmp_path, init_lora_weights=start)
    torch.manual_seed(99)  # nothing depends on it
    torch.testing.assert_close(logits(load_model(bases["llama"], str(tmp_path), CPU)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("start", LOST_STARTS)
def test_initialisations_that_cannot_be_repeated_are_refused(tmp_path, bases, start):
    make_adapter(tmp_path)
    settings = tmp_path / "adapter_config.json"
    settings.write_text(
        json.dumps(json.loads(settings.read_text()) | {"init_lora_weights": start, **LOST_STARTS[start]})
    )
    with pytest.raises(
        ConfigError, match=rf"init_lora_weights: {start}.*cannot be repeated.*as model\.base\."
    ) as caught:
        load_config(bases["llama"], str(tmp_path))
    assert "ownload" not in str(caught.value)
    assert ("path_initial_model_for_weight_conversion" in str(caught.value)) == (start not in ("loftq", "of_tomorrow"))


def test_adapters_of_other_kinds_are_refused(tmp_path, bases):
    options = IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])
    get_peft_model(tiny_model("llama", dtype=torch.float32), options).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"of type IA3.*merge yours with peft and name the result as model\.base"):
        load_config(bases["llama"], str(tmp_path))


@pytest.mark.parametrize("options", [{"kasa_config": KasaConfig()}, {"alora_invocation_tokens": [3]}])
def test_kinds_of_lora_that_are_not_merged_are_refused_by_name(tmp_path, bases, options):
    make_adapter(tmp_path, **options)
    with pytest.raises(ConfigError, match=f"sets {next(iter(options))}, a kind of LoRA that is not merged here"):
        load_config(bases["llama"], str(tmp_path))


def test_unreadable_settings_are_refused(tmp_path, bases):
    make_adapter(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot read the settings"):
        load_config(bases["llama"], str(tmp_path))
