"""Commands other than `run` with arguments that cannot work."""

import json

from e2e.refusals import Row, all_of, as_it_was, exported, holding, linked, merged, own_model, set_to


def compare(says, options, change=as_it_was):
    return Row(says, change, f"compare {{run}} --out {{out}} {options}")


def evaluate(says, options):
    return Row(says, command=f"evaluate {{model}} {options}")


def latency(says, options):
    return Row(says, command=f"latency {{model}} --out {{out}} {options}")


ACTIVE = merged(space="head_dim", method={"name": "tomoe", "budget_counts": "active"})
ROWS = {
    "inspect: unknown space": Row(["`widht`", "Did you mean `width`?"], command="inspect {model} --space widht"),
    "inspect: no model": Row(["no folder"], command="inspect ./nowhere"),
    "evaluate: no model": Row(["no folder"], command="evaluate ./nowhere --suite clinic"),
    "evaluate: unknown suite": evaluate(["`helthcare`", "Did you mean `healthcare`?"], "--suite helthcare"),
    "evaluate: limit of nothing": evaluate(["`limit`", "greater than 0"], "--suite clinic --limit 0"),
    "evaluate: batch of nothing": evaluate(["`batch_size`", "greater than 0"], "--suite clinic --batch-size 0"),
    "evaluate: nothing to evaluate on": evaluate(["either --suite", "--tasks"], ""),
    "evaluate: suites and tasks": evaluate(["either --suite", "--tasks"], "--suite clinic --tasks mmlu"),
    "evaluate: suite without its data": evaluate(["$TUNEPRUNE_DATA", "Set it"], "--suite healthcare"),
    "evaluate: one suite twice": evaluate(["two tasks are called"], "--suite clinic,clinic"),
    "report: no folder": Row(["no finished run", "--out"], command="report {out}"),
    "report: damaged record": Row(["record.json", "cannot be read"], holding("out/record.json", "{"), "report {out}"),
    "report: record that is a list": Row(
        ["record.json", "one JSON object"], holding("out/record.json", "[]"), "report {out}"
    ),
    "report: record of a later version": Row(
        ["schema 99", "version that wrote it"], holding("out/record.json", json.dumps({"schema": 99})), "report {out}"
    ),
    "latency: unknown phase": latency(["`phase`", "'decode' or 'prefill'"], "--phase decoding"),
    "latency: batch of nothing": latency(["`batch_size`", "greater than or equal to 1"], "--batch-size 0"),
    "latency: multiple of nothing": latency(["`multiple_of`", "whole number from 1 up"], "--multiple-of 0"),
    "latency: no model": Row(["no folder"], command="latency ./nowhere --out {out}"),
    "plan: method that decides while it tunes": Row(
        ["`atp` decides while it tunes", "Methods that decide at once"], command="plan {run} --out {out}"
    ),
    "plan: folder of something else": Row(
        ["not empty"], holding("out/thesis.doc", "mine"), "plan {run} --set method=magnitude --out {out}"
    ),
    "plan: folder of the model itself": Row(
        ["not empty"], own_model, "plan {run} --set method=magnitude --out {folder}/model"
    ),
    "recover: folder of the model itself": Row(
        ["not empty", "Name a new folder"], own_model, "recover {model} {run} --out {model}"
    ),
    "run: folder of the model itself": Row(["not empty", "Name a new folder"], own_model, "run {run} --out {model}"),
    "run: folder with the model in it": Row(["not empty", "Name a new folder"], own_model, "run {run} --out {folder}"),
    "run: link to the folder of the model itself": Row(
        ["not empty", "Name a new folder"], all_of(own_model, linked("link", "model")), "run {run} --out {folder}/link"
    ),
    "run: folder of an adapter": Row(
        ["not empty", "Name a new folder"],
        holding("adapter/adapter_config.json", "{}"),
        "run {run} --out {folder}/adapter",
    ),
    "run: folder of an export": Row(
        ["not empty", "Name a new folder"], exported("small"), "run {run} --out {folder}/small"
    ),
    "recover: no model": Row(["no folder"], command="recover ./nowhere {run} --out {out}"),
    "recover: no run file": Row(["nowhere.yaml"], command="recover {model} ./nowhere.yaml --out {out}"),
    "recover: too long for the model": Row(
        ["max_length=4096", "context of 128"], set_to("tune.max_length", 4096), "recover {model} {run} --out {out}"
    ),
    "recover: no data": Row(
        ["no such data file"],
        set_to("data.train", [{"path": "nowhere.jsonl"}]),
        "recover {model} {run} --out {out}",
    ),
    "recover: folder of something else": Row(
        ["not empty", "Name a new folder"], holding("out/thesis.doc", "mine"), "recover {model} {run} --out {out}"
    ),
    "validate: out of reach": Row(["reach"], command="validate {run} --set budget.keep=0.01"),
    "validate: no run file": Row(["nowhere.yaml"], command="validate ./nowhere.yaml"),
    "compare: unknown method": compare(["`magnitud`", "Did you mean `magnitude`"], "--methods atp,magnitud"),
    "compare: method twice": compare(["every method once"], "--methods atp,atp"),
    "compare: seed that is no number": compare(["--seeds 0,x", "0,1,2"], "--methods atp --seeds 0,x"),
    "compare: seed twice": compare(["--seeds 1,1", "different"], "--methods atp --seeds 1,1"),
    "compare: negative seed": compare(["--seeds -1", "from 0 up"], "--methods atp --seeds -1"),
    "compare: unknown option": compare(["magnitude:sise=3", "no such option"], "--methods atp,magnitude:sise=3"),
    "compare: option without a value": compare(["name:option=value", "`8`"], "--methods atp,magnitude:8"),
    "compare: option that is no YAML": compare(["YAML"], "--methods atp,magnitude:norm=["),
    "compare: unknown space": compare(
        ["random:space=widht", "Did you mean `width`?"], "--methods atp,random:space=widht"
    ),
    "compare: out of reach": compare(["atp at keep 0.02", "reach"], "--methods atp,random:space=disp --keep 0.6,0.02"),
    "compare: share that is no number": compare(["--keep 0.6,x", "0.8,0.6"], "--methods atp --keep 0.6,x"),
    "compare: share above one": compare(["--keep 0.6,1.2", "above 0"], "--methods atp --keep 0.6,1.2"),
    "compare: unknown reference": compare(["--against flap", "atp"], "--methods atp --against flap"),
    "compare: no jobs": compare(["--jobs 0"], "--methods atp --jobs 0"),
    "compare: budget of something else": compare(["budget.of=total"], "--methods atp --set budget.of=prunable"),
    "compare: budget as an amount": compare(
        ["budget.at_most=10k", "Use budget.keep"], "--methods atp", merged(budget={"at_most": "10k"})
    ),
    "compare: second tuning": compare(["recover.steps=3", "tune.steps=6"], "--methods atp --set recover.steps=3"),
    "compare: control phase longer than the run": compare(
        ["atp:control_limit=50 at keep 0.6", "6 steps"], "--methods magnitude,atp:control_limit=50"
    ),
    "compare: keep that one method cannot reach": compare(
        ["cfsp at keep 0.5", "Raise budget.keep"], "--methods magnitude,cfsp --keep 0.5"
    ),
    "compare: sizes that would differ": compare(
        ["larger size", "budget_counts=total"], "--methods random,tomoe", ACTIVE
    ),
    "compare: folder of something else": compare(
        ["not empty", "Name a new folder"], "--methods random", holding("out/thesis.doc", "mine")
    ),
    "usage: unknown command": Row(["`tuneprune --help`", "runn"], command="runn {run}"),
    "usage: unknown option": Row(["--jsn", "--json", "`tuneprune methods --help`"], command="methods --jsn"),
    "usage: argument too many": Row(["width", "`tuneprune targets --help`"], command="targets width"),
    "usage: argument too few": Row(["RUN.yaml", "`tuneprune run --help`"], command="run"),
    "usage: option that is needed": Row(["--plan", "`tuneprune compress --help`"], command="compress {model} --out x"),
    "usage: option without its value": Row(["--out", "requires an argument"], command="run {run} --out"),
    "usage: text for a number": Row(
        ["--limit", "integer", "`tuneprune evaluate --help`"], command="evaluate {model} --suite clinic --limit x"
    ),
}
