"""Exports that the model, the run or the environment does not allow."""

import json

from e2e.refusals import Row, copied, holding, merged, set_to

HEAD_DIM = {"space": "head_dim", "export": ["hf", "gguf"]}
WITH_PACKAGES, WITHOUT_PACKAGES = (
    {"tuneprune.export.targets.base.find_spec": lambda _, found=found: found} for found in (object(), None)
)


def exported(**changes):
    """Change the config of the model's folder."""

    def change(case):
        case.model(**changes)

    return change


def export(says, targets, **options):
    return Row(says, set_to("export", targets), replaced=WITH_PACKAGES, **options)


def no_json(case):
    (case.model() / "config.json").write_text(json.dumps({})[:1])


COMMAND = "export {model} --to gguf --out {out}"
ROWS = {
    "shape that the target cannot hold": Row(
        ["GGUF", "`head_dim`", "Use space `width`"], merged(**HEAD_DIM), replaced=WITH_PACKAGES
    ),
    "shape, before a package is asked for": Row(["Use space `width`"], merged(**HEAD_DIM), replaced=WITHOUT_PACKAGES),
    "missing package": Row(
        ["`gguf` needs gguf", 'pip install "tuneprune[gguf]"'], set_to("export", ["gguf"]), replaced=WITHOUT_PACKAGES
    ),
    "width that the format cannot hold": export(["bnb:type=nf4", "budget.multiple_of"], ["hf", "bnb:type=nf4"]),
    "option that the target has not": export(["`gguf` has no option `kind`", "type"], ["gguf:kind=q8_0"]),
    "value that the option has not": export(["type", "q9_9", "q8_0"], ["gguf:type=q9_9"]),
    "option without a value": export(["name:option=value", "`q8_0`"], ["gguf:q8_0"]),
    "unknown target": export(["`ggfu`", "Did you mean `gguf`?"], ["ggfu"]),
    "unknown target that resembles hf": export(["`hff`", "Did you mean `hf`?"], ["hff"]),
    "targets that are no list": export(["`export`", "list"], {"gguf": True}),
    "the command on a folder that is no run": Row(
        ["not the folder of a run", "--out"], command="export {model} --to gguf"
    ),
    "the command on a run that is not finished": Row(
        ["no finished run", "--resume"], holding("begun/config.yaml", "{}"), "export {folder}/begun --to gguf"
    ),
    "the command on a model that a run has not written yet": Row(
        ["has no model yet", "--resume"],
        holding("begun/config.yaml", "{}"),
        "export {folder}/begun/model --to gguf --out {out}",
    ),
    "the command without a target": Row(["name a target besides hf"], command="export {model} --to hf --out {out}"),
    "the command with an unknown target": Row(["Did you mean `gguf`?"], command="export {model} --to ggfu --out {out}"),
    "the command on a folder that is none": Row(
        ["no folder", "hub id"], command="export {folder}/nowhere --to gguf --out {out}"
    ),
    "the command on an empty folder": Row(["has no config.json"], command="export {folder} --to gguf --out {out}"),
    "the command on a quantised folder": Row(
        ["gptq, 4 bits", "quantised from"],
        exported(quantization_config={"quant_method": "gptq", "bits": 4}),
        COMMAND,
    ),
    "the command on an unknown kind of model": Row(
        ["no_such_model", "known families"], exported(model_type="no_such_model"), COMMAND
    ),
    "the command into the folder of the model": Row(
        ["would replace", "Name another folder"],
        copied("gguf"),
        "export {folder}/gguf --to gguf --out {folder}",
    ),
    "the command into the folder of another model": Row(
        ["no export.json", "Name another folder"],
        copied("gguf"),
        "export {model} --to gguf --out {folder}",
    ),
    "the command on a config that is no JSON": Row(["config"], no_json, COMMAND),
}
