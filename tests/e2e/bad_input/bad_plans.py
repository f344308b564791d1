"""Plans that are none, or that belong to another model or space, and places that cannot take the smaller model."""

import torch
from e2e.refusals import Row, all_of, as_it_was, copied, exported, holding, linked, own_model

from tuneprune import families
from tuneprune.model.loading import load_config, skeleton
from tuneprune.structure import spaces
from tuneprune.structure.edits import Keep
from tuneprune.structure.plan import Plan

COMMAND = "compress {model} --plan {folder}/plan --out {out}"


def plan(space="width", *edits):
    return lambda case: Plan(tuple(edits), space).save(case.folder / "plan")


def plan_of(*edits):
    """A plan with these edits for the run's own model."""

    def change(case):
        config = load_config(case.content["model"])
        space = spaces.build("width", families.describe_config(config), skeleton(config))
        plan(space.fingerprint, *edits)(case)

    return change


def keep(name, units):
    return Keep(name, torch.tensor(units))


def applied(says, change=as_it_was, command=COMMAND):
    return Row(says, change, command)


def into(out, change, model="{folder}/model"):
    """The plan applied to `model`, and written where `model` or the plan is read from."""
    return applied(
        ["would replace", "Name another folder"],
        all_of(plan(), change),
        f"compress {model} --plan {{folder}}/plan --out {out}",
    )


ROWS = {
    "no plan": applied(["holds no plan", "plan.json is missing", "Name the plan/ of a run"]),
    "plan that is no JSON": applied(["no readable plan"], all_of(plan(), holding("plan/plan.json", "{"))),
    "plan that is a list": applied(["no readable plan"], all_of(plan(), holding("plan/plan.json", "[]"))),
    "plan without tensors": applied(
        ["no readable plan"], all_of(plan(), holding("plan/plan.safetensors", b"\x09" * 40))
    ),
    "plan of a later version": applied(
        ["plan format 99", "use the version that wrote it"],
        all_of(plan(), holding("plan/plan.json", '{"format": 99, "provenance": {}}')),
    ),
    "plan of an unknown space": applied(["space", "width"], plan("widht")),
    "plan of a group that is not there": applied(["`model.layers.9.mlp`"], plan_of(keep("model.layers.9.mlp", [0]))),
    "plan of units that are not there": applied(
        ["`model.layers.0.mlp`", "ascend"], plan_of(keep("model.layers.0.mlp", [0, 10_000]))
    ),
    "plan of no units": applied(["`model.layers.0.mlp`", "keep some"], plan_of(keep("model.layers.0.mlp", []))),
    "plan of another model": applied(
        ["belongs to space 0123", "Apply it to the model and space it was made for"], all_of(plan("0123"))
    ),
    "size of a file that is none": applied(["`huge`", "5GB"], plan(), COMMAND + " --max-shard-size huge"),
    "folder with other files": applied(
        ["would be lost", "Name another folder"], all_of(plan(), holding("out/thesis.doc", "mine"))
    ),
    "folder of the model itself": into("{folder}/model", own_model),
    "folder of the model itself, an export": into("{folder}/base", exported("base"), model="{folder}/base"),
    "link to the folder of the model itself": into("{folder}/link", all_of(own_model, linked("link", "model"))),
    "folder with the model in it": into("{folder}", own_model),
    "folder with the plan in it": into("{folder}/plan", own_model),
    "folder of another model": applied(["no export.json", "Name another folder"], all_of(plan(), copied("out"))),
    "folder of an adapter": applied(
        ["no export.json", "Name another folder"], all_of(plan(), holding("out/adapter_config.json", "{}"))
    ),
    "folder of an export with a file of one's own": applied(
        ["notes.md", "would be lost"], all_of(plan(), exported("out", **{"notes.md": "mine"}))
    ),
    "folder of an export with other weights": applied(
        ["model.safetensors", "another size"], all_of(plan(), exported("out", **{"model.safetensors": "tuned"}))
    ),
    "folder that is a file": applied(["is a file", "Name another"], all_of(plan(), holding("out", "mine"))),
    "no model": applied(["no folder"], plan(), "compress ./nowhere --plan {folder}/plan --out {out}"),
    "no adapter": applied(["no folder"], plan(), COMMAND + " --adapter ./nowhere"),
}
