"""Budgets, spaces and methods that cannot be combined with each other or with the model."""

from e2e.refusals import Row, all_of, holding, merged, of_family, set_to
from helpers import tiny_runs


def norms_behind(case):
    model = tiny_runs.save_model(case.folder / "model", "gemma2")
    case.content |= {"model": str(model), "space": "residual", "method": {"name": "slicegpt"}}


def plain_mlps(case):
    model = tiny_runs.save_model(case.folder / "model", "starcoder2")
    case.content |= {"model": str(model), "space": "head_dim", "method": {"name": "tomoe"}}


def budget(says, **content):
    return Row(says, merged(budget=content))


def table(case):
    case.content["budget"] = {"of": "latency", "keep": 0.6, "table": str(case.folder / "latency.json")}


def at_work(method, **options):
    return merged(method={"name": method, **options})


ROWS = {
    "budget of zero": Row(["`budget.keep`", "greater than 0", "0"], set_to("budget.keep", 0)),
    "negative budget": Row(["`budget.keep`", "greater than 0", "-0.5"], set_to("budget.keep", -0.5)),
    "budget above one": Row(["`budget.keep`", "less than or equal to 1", "1.5"], set_to("budget.keep", 1.5)),
    "budget that is no number": Row(["`budget.keep`", "nan"], set_to("budget.keep", float("nan"))),
    "budget that is a text": Row(["`budget.keep`", "number", "half"], set_to("budget.keep", "half")),
    "budget below reach": Row(["budget.keep=0.05", "reach", " to "], set_to("budget.keep", 0.05)),
    "budget of unknown things": budget(["`budget.of`", "'total'", "weights"], keep=0.5, of="weights"),
    "two budgets": budget(["`keep` and `at_most`", "write one"], keep=0.5, at_most="10k"),
    "amount of prunable parameters": budget(["`at_most`", "use `keep`"], at_most="10k", of="prunable"),
    "amount that is none": budget(["at_most=much", "write parameters"], at_most="much"),
    "uneven multiple": budget(["multiple_of", "write `auto` or a whole number"], keep=0.6, multiple_of=0),
    "unknown way with layers": budget(["`budget.per_layer`", "'free' or 'uniform'"], keep=0.6, per_layer="equal"),
    "phase of a budget that counts no time": budget(["`phase` belongs to `of: latency`"], keep=0.6, phase="decode"),
    "table that is not there": Row(["latency.json", "Name the latency.json"], table),
    "table that is none": Row(
        ["not a latency table", "leave the table out"], all_of(table, holding("latency.json", "{}"))
    ),
    "times of a space without": Row(
        ["budget.of=latency", "`disp`", "Use space"], merged(space="disp", budget={"of": "latency", "keep": 0.6})
    ),
    "budget below what protected layers leave": Row(
        ["budget.keep=0.6", "method.protect_first=0.5", "goes down to", "Protect fewer layers"],
        at_work("llm_pruner", protect_first=0.5),
    ),
    "method on a space that it cannot treat": Row(["`short`", "`width`", "supports depth"], at_work("short")),
    "method on norms that it cannot treat": Row(["gemma2", "`slicegpt` needs RMSNorms", "`magnitude`"], norms_behind),
    "method on MLPs that it cannot treat": Row(["starcoder2", "`tomoe` routes gated MLPs only", "`atp`"], plain_mlps),
    "space that the method cannot treat": Row(
        ["`atp`", "`experts`", "it supports width", "methods for `experts` are magnitude, random"],
        set_to("space", "experts"),
    ),
    "preset on a space that it cannot treat": Row(
        ["`hesso-cric`", "`depth`", "it supports width, head_dim, disp", "methods for `depth` are atp,"],
        merged(space="depth", method={"name": "hesso-cric"}),
    ),
    "keep that a method cannot reach": Row(
        ["`cfsp` removes MLP channels only", "budget.keep=0.5", "Raise budget.keep"],
        merged(method={"name": "cfsp"}, budget={"keep": 0.5}),
    ),
    "control phase longer than the run": Row(
        ["method.control_limit=50", "6 steps", "raise tune.steps"], at_work("atp", control_limit=50)
    ),
    "heads of the generator that do not divide it": Row(
        ["generator_size=8", "multiple of generator_heads=3"], at_work("atp", generator_size=8, generator_heads=3)
    ),
    **{
        f"end of {name} before its start": Row(
            ["start_share=0.9", "below end_share=0.2"], at_work(name, start_share=0.9, end_share=0.2)
        )
        for name in ("hesso", "loraprune", "apt")
    },
    "experts of a model without": Row(
        ["llama", "`experts` needs a mixture of experts", "Use space `width` or `disp`"],
        merged(space="experts", method={"name": "magnitude"}),
    ),
    "depth of a mixture": Row(["mixtral", "`depth`", "Use space `experts`"], of_family("mixtral", "depth", "short")),
    "width of a mixture": Row(["qwen3_moe", "`width`", "Use space `experts`"], of_family("qwen3_moe", "width", "atp")),
    "dims of partly rotated heads": Row(
        ["phi", "`head_dim` needs RoPE over the whole head", "Use space `width` or `disp`"],
        of_family("phi", "head_dim", "magnitude"),
    ),
    "residual stream under LayerNorm": Row(
        ["gpt_neox", "`residual` needs RMSNorm", "Use space `width`, `disp` or `depth`"],
        of_family("gpt_neox", "residual", "slicegpt"),
    ),
    "compensation in a space without such inputs": Row(
        ["compensate=obs", "`depth`", "width, head_dim or disp"],
        merged(space="depth", method={"name": "short"}, compensate="obs"),
    ),
    "unknown compensation": Row(["`compensate.name`", "'none' or 'obs'"], merged(compensate="osb")),
    "bytes of a method that counts what is active": Row(
        ["budget.of=bytes", "`tomoe`", "Use budget.of=total"],
        merged(
            space="head_dim", method={"name": "tomoe", "budget_counts": "active"}, budget={"of": "bytes", "keep": 0.6}
        ),
    ),
    "multiple of too much": Row(["budget.multiple_of=1000", "Use at most"], set_to("budget.multiple_of", 1000)),
    "unknown method": Row(["`atpp`", "magnitude", "Did you mean `atp`?"], set_to("method.name", "atpp")),
    "unknown method option": Row(["method.temprature", "Did you mean `temperature`?"], set_to("method.temprature", 1)),
    "method option out of range": Row(["method.temperature", "greater than 0", "-1"], set_to("method.temperature", -1)),
    "unknown space": Row(["`widht`", "head_dim", "Did you mean `width`?"], set_to("space", "widht")),
}
