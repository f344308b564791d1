"""Quantised bases: refused by every command that would prune or plan on them, with their kind and the way out."""

import json

import torch
from e2e.refusals import Row
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
    "run": "run {run} --out {out}",
    "one-shot run": "run {run} --set method=llm_pruner --out {out}",
    "compare": "compare {run} --methods random,hesso --out {out}",
    "plan": "plan {run} --set method=llm_pruner --out {out}",
    "validate": "validate {run}",
    "inspect": "inspect {model}",
    "compress": "compress {model} --plan {folder}/plan --out {out}",
}
STORED = {
    "float8 weights": (WEIGHT, torch.float8_e4m3fn, f"({WEIGHT} is stored as F8_E4M3)"),
    "int8 weights": (WEIGHT, torch.int8, f"({WEIGHT} is stored as I8)"),
    "packed weights": (WEIGHT.replace("weight", "qweight"), torch.int32, "stored as I32)"),
}


def declares(settings):
    def change(case):
        model = case.model()
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
        Plan((), "any").save(case.folder / "plan")

    return change


def stores(name, dtype):
    """Weights of another type than the config declares."""

    def change(case):
        model = case.model()
        tensors = load_file(model / "model.safetensors")
        tensors[name] = tensors.pop(WEIGHT).to(dtype)
        save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})

    return change


def quantised(kind, change, command):
    return Row(["{model}", "is quantised", kind, "original weights"], change, command)


ROWS = {
    **{kind: quantised(name, declares(s), COMMANDS["validate"]) for kind, (s, name) in KINDS.items()},
    **{
        f"{settings['quant_method']} in {name}": quantised(settings["quant_method"], declares(settings), command)
        for name, command in COMMANDS.items()
        for settings in (GPTQ, FP8)
    },
    **{
        f"undeclared {kind}": quantised(said, stores(name, dtype), COMMANDS["validate"])
        for kind, (name, dtype, said) in STORED.items()
    },
}
