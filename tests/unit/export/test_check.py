"""Export targets are refused before any training, and what will load the result is known."""

import copy

import pytest
from helpers.tiny import DENSE, REFUSED
from helpers.tiny_tuning import setting

from tuneprune import export, methods
from tuneprune.budget import Budget
from tuneprune.compress import compress
from tuneprune.errors import UnsupportedExport


def test_hugging_face_asks_nothing_of_the_shape():
    export.check_targets(["hf"], lambda: pytest.fail("the shape was foreseen"))


def test_unknown_target_names_the_known_ones():
    with pytest.raises(UnsupportedExport, match=r"Unknown export `hff`; known exports are hf.*Did you mean `hf`?"):
        export.check_targets(["hff"], lambda: pytest.fail("the shape was foreseen"))


def loads_as(made, budget, method=None):
    """What is said to load the result; of any size where no method is named."""
    budget, additions = budget or Budget(), None
    if method is not None:
        budget, additions = method.constrained(budget), method.adds(made.space)
    return export.loads_as(made.model.config, made.architecture, made.space, budget, additions)


def holds(made, budget, **options):
    """Whether a stock class is said to load the result; None where that depends on the decision."""
    said = loads_as(made, budget, methods.build(options))
    return None if ", else " in said else "stock Hugging Face" in said


@pytest.mark.parametrize(
    ("space_name", "options"),
    [
        ("width", {"name": "magnitude"}),
        ("width", {"name": "minitron", "batches": 1}),
        ("width", {"name": "flap", "batches": 1}),
        ("width", {"name": "flap", "batches": 1, "bias": False}),
        ("residual", {"name": "magnitude"}),
        ("residual", {"name": "slicegpt", "batches": 1}),
        ("residual", {"name": "slicegpt", "batches": 1, "variant": "skip"}),
        ("depth", {"name": "magnitude"}),
        ("experts", {"name": "magnitude"}),
    ],
)
def test_what_is_said_is_what_comes_out(tmp_path, space_name, options):
    method = methods.build(options)
    for variant in ["mixtral"] if space_name == "experts" else DENSE:
        made = (
            setting(tmp_path, variant=variant, space_name=space_name, lora=False)
            if ((variant, space_name) not in REFUSED)
            else None
        )
        if made is None or (method.name == "slicegpt" and not made.architecture.is_rotatable):
            continue
        for keep in (0.6, 0.7):
            budget = Budget(keep=keep, per_layer="uniform")
            said = holds(made, budget, **options)
            plan = method.begin(made.subject, budget).plan()
            small = compress(copy.deepcopy(made.model), made.architecture, made.space, plan)
            assert said in (not hasattr(small.config, "pruned"), None), (variant, keep)


def test_what_a_family_has_no_room_for_is_said(tmp_path):
    uniform = Budget(per_layer="uniform")
    made = setting(tmp_path / "neox", variant="gpt_neox", lora=False)
    assert holds(made, uniform, name="magnitude") is None  # where no head goes
    made = setting(tmp_path / "gemma", variant="gemma2", space_name="residual", lora=False)
    assert holds(made, None, name="magnitude") is False
    made = setting(tmp_path / "biased", variant="llama_mha_biased", space_name="residual", lora=False)
    found = {holds(made, Budget(keep=keep / 20), name="magnitude") for keep in range(4, 20)}
    assert found == {True, False}


def test_methods_that_set_or_add_something_are_asked(tmp_path):
    made = setting(tmp_path / "width", lora=False)
    assert holds(made, None, name="minitron") is True
    assert holds(made, None, name="minitron", uniform=False) is False
    assert holds(made, Budget(per_layer="uniform"), name="flap") is False
    assert holds(made, Budget(per_layer="uniform"), name="flap", bias=False) is True
    made = setting(tmp_path / "residual", space_name="residual", lora=False)
    assert holds(made, None, name="slicegpt") is True
    assert holds(made, None, name="slicegpt", variant="skip") is False


def test_the_class_that_will_load_it_is_named(tmp_path):
    def said(variant, space_name, budget=None, method=None):
        made = setting(tmp_path / f"{variant}-{space_name}", variant=variant, space_name=space_name, lora=False)
        return loads_as(made, budget, methods.build({"name": method}) if method else None)

    uniform = Budget(per_layer="uniform")
    by_file = "PrunedLlamaForCausalLM (llama), with one file of remote code"
    assert said("llama", "depth") == "LlamaForCausalLM (llama), stock Hugging Face"
    assert said("llama", "width", uniform) == "LlamaForCausalLM (llama), stock Hugging Face"
    assert said("llama", "width", uniform, "random") == "LlamaForCausalLM (llama), stock Hugging Face"
    assert said("llama", "width") == said("llama", "disp") == said("llama", "width", method="magnitude") == by_file
    qwen = "Qwen2ForCausalLM (qwen2) or SeedOssForCausalLM (seed_oss), stock Hugging Face, depending on what is removed"
    assert said("qwen2", "width", uniform) == qwen
    neox = "GPTNeoXForCausalLM (gpt_neox) where a stock class has room for the widths, else PrunedGPTNeoXForCausalLM"
    assert said("gpt_neox", "width", uniform).startswith(neox)
