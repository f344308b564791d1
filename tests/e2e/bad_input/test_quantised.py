"""Quantised bases: refused by every command that would prune or plan on them, with their kind and the way out."""

import json

import pytest
import torch
from refusals import Case, assert_refused
from safetensors.torch import load_file, save_file

from tuneprune.structure.plan import Plan

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
WEIGHT = "model.layers.1.mlp.up_proj.weight"
KINDS = {
    "gptq": (GPTQ, "(gptq, 4 bits)"),
    "awq": ({"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm"}, "(awq, 4 bits)"),
    "awq of older tools": ({"quant_method": "awq", "w_bit": 4, "q_group_size": 128}, "(awq, 4 bits)"),
    "bitsandbytes nf4": (
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False, "bnb_4bit_quant_type": "nf4"},
        "(bitsandbytes, 4 bits)",
    ),
    "bitsandbytes int8": (
        {"quant_method": "bitsandbytes", "load_in_4bit": False, "load_in_8bit": True},
        "(bitsandbytes, 8 bits)",
    ),
    "bitsandbytes of older tools": ({"load_in_8bit": True}, "(bitsandbytes, 8 bits)"),
    "fp8": (FP8, "(fp8)"),
    "fbgemm fp8": ({"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}, "(fbgemm_fp8)"),
    "mxfp4": ({"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}, "(mxfp4)"),
    "compressed tensors": (
        {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {}},
        "(compressed-tensors)",
    ),
    "hqq": ({"quant_method": "hqq", "quant_config": {}}, "(hqq)"),
    "torchao": ({"quant_method": "torchao", "quant_type": "int8_weight_only"}, "(torchao)"),
    "a kind of tomorrow": ({"quant_method": "int1", "bits": 1}, "(int1, 1 bits)"),
}
COMMANDS = {
    "run": ("run", "{run}", "--out", "{out}"),
    "one-shot run": ("run", "{run}", "--set", "method=llm_pruner", "--out", "{out}"),
    "compare": ("compare", "{run}", "--methods", "random,hesso", "--out", "{out}"),
    "plan": ("plan", "{run}", "--set", "method=llm_pruner", "--out", "{out}"),
    "validate": ("validate", "{run}"),
    "inspect": ("inspect", "{model}"),
    "compress": ("compress", "{model}", "--plan", "{plan}", "--out", "{out}"),
}


@pytest.fixture
def refuses(tmp_path, model_folder, tuneprune, capsys):
    """Runs a command on a changed copy of a model, and checks that it is refused in these words, nothing written."""

    def check(change, fragments, command):
        case = Case(tmp_path, model_folder)
        model, plan, out = case.model(), tmp_path / "plan", tmp_path / "out"
        Plan((), "any").save(plan)
        change(model)
        filled = [part.format(run=case.run_file(), model=model, plan=plan, out=out) for part in command]
        assert_refused(capsys, tuneprune(*filled), [str(model), "is quantised", *fragments, "quantised from"])
        assert not out.exists()

    return check


def declares(settings):
    def change(model):
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))

    return change


def stores(name, dtype):
    """Weights of another type under a config that does not speak of it."""

    def change(model):
        tensors = load_file(model / "model.safetensors")
        tensors[name] = tensors.pop(WEIGHT).to(dtype)
        save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})

    return change


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_named(kind, refuses):
    settings, name = KINDS[kind]
    refuses(declares(settings), [name], COMMANDS["validate"])


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("settings", [GPTQ, FP8], ids=lambda settings: settings["quant_method"])
def test_every_command_refuses(command, settings, refuses):
    refuses(declares(settings), [settings["quant_method"]], COMMANDS[command])


@pytest.mark.parametrize(
    ("name", "dtype", "said"),
    [
        (WEIGHT, torch.float8_e4m3fn, f"({WEIGHT} is stored as F8_E4M3)"),
        (WEIGHT, torch.int8, f"({WEIGHT} is stored as I8)"),
        (WEIGHT.replace("weight", "qweight"), torch.int32, "stored as I32)"),
    ],
)
def test_weights_that_no_config_declares(name, dtype, said, refuses):
    refuses(stores(name, dtype), [said], COMMANDS["validate"])


def test_the_way_out_works(tmp_path, model_folder, tuneprune):
    """What transformers dequantised and saved is a base like any other."""
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    quantised = AutoModelForCausalLM.from_pretrained(
        model_folder, quantization_config=BitsAndBytesConfig(load_in_8bit=True), device_map="cpu"
    )
    folder = tmp_path / "again"
    quantised.dequantize().save_pretrained(folder)
    AutoTokenizer.from_pretrained(model_folder).save_pretrained(folder)
    assert tuneprune("inspect", folder) == 0
