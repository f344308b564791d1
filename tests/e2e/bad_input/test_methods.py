"""Budgets, spaces and methods that do not go together, or not with the model."""

import pytest
import tiny_runs
import yaml
from refusals import assert_refused, of_family, set_to


def norms_behind(case):
    case.content |= {
        "model": str(tiny_runs.save_model(case.folder / "model", "gemma2")),
        "space": "residual",
        "method": {"name": "slicegpt"},
    }


def plain_mlps(case):
    case.content |= {
        "model": str(tiny_runs.save_model(case.folder / "model", "starcoder2")),
        "space": "head_dim",
        "method": {"name": "tomoe"},
    }


CASES = {
    "budget of zero": (set_to("budget.keep", 0), ["`budget.keep`", "greater than 0", "0"]),
    "negative budget": (set_to("budget.keep", -0.5), ["`budget.keep`", "greater than 0", "-0.5"]),
    "budget above one": (set_to("budget.keep", 1.5), ["`budget.keep`", "less than or equal to 1", "1.5"]),
    "budget that is no number": (set_to("budget.keep", float("nan")), ["`budget.keep`", "nan"]),
    "budget below reach": (set_to("budget.keep", 0.05), ["budget.keep=0.05", "reach", " to "]),
    "budget below what protected layers leave": (
        set_to("method", {"name": "llm_pruner", "protect_first": 0.5}),
        ["budget.keep=0.6", "method.protect_first=0.5", "goes down to", "Protect less"],
    ),
    "method on a space that it cannot treat": (
        set_to("method", {"name": "short"}),
        ["`short`", "`width`", "supports depth"],
    ),
    "method on norms that it cannot treat": (norms_behind, ["gemma2", "`slicegpt` needs RMSNorms", "`magnitude`"]),
    "method on MLPs that it cannot treat": (plain_mlps, ["starcoder2", "`tomoe` routes gated MLPs only", "`atp`"]),
    "space that the method cannot treat": (
        set_to("space", "experts"),
        ["`atp`", "`experts`", "it supports width", "methods for `experts` are magnitude, random"],
    ),
    "preset on a space that it cannot treat": (
        lambda case: case.content.update(space="depth", method={"name": "hesso-cric"}),
        ["`hesso-cric`", "`depth`", "it supports width, head_dim, disp", "methods for `depth` are atp,"],
    ),
    "keep that a method cannot reach": (
        lambda case: case.content.update(method={"name": "cfsp"}, budget={"keep": 0.4}),
        ["`cfsp` removes MLP channels only", "budget.keep=0.4", "keeps 0.5400", "Raise budget.keep"],
    ),
    "experts of a model without": (
        lambda case: case.content.update(space="experts", method={"name": "magnitude"}),
        ["llama", "`experts` needs a mixture of experts", "Use space `width` or `disp`"],
    ),
    "depth of a mixture": (of_family("mixtral", "depth", "short"), ["mixtral", "`depth`", "Use space `experts`"]),
    "width of a mixture": (of_family("qwen3_moe", "width", "atp"), ["qwen3_moe", "`width`", "Use space `experts`"]),
    "dims of partly rotated heads": (
        of_family("phi", "head_dim", "magnitude"),
        ["phi", "`head_dim` needs RoPE over the whole head", "Use space `width` or `disp`"],
    ),
    "residual stream under LayerNorm": (
        of_family("gpt_neox", "residual", "slicegpt"),
        ["gpt_neox", "`residual` needs RMSNorm", "Use space `width`, `disp` or `depth`"],
    ),
    "compensation in a space without such inputs": (
        lambda case: case.content.update(space="depth", method={"name": "short"}, compensate="obs"),
        ["compensate=obs", "`depth`", "width, head_dim or disp"],
    ),
    "multiple of too much": (set_to("budget.multiple_of", 1000), ["budget.multiple_of=1000", "Use at most"]),
}


@pytest.mark.parametrize("name", CASES)
def test_methods(name, refuses_run):
    refuses_run(*CASES[name])


def test_sizes_that_would_differ_are_not_compared(tmp_path, model_folder, tuneprune, capsys):
    run_file = tiny_runs.write_run(tmp_path, model_folder, space="head_dim")
    content = yaml.safe_load(run_file.read_text())
    run_file.write_text(yaml.safe_dump(content | {"method": {"name": "tomoe", "budget_counts": "active"}}))
    arguments = ["compare", run_file, "--methods", "random,tomoe", "--out", tmp_path / "out"]
    assert_refused(capsys, tuneprune(*arguments), ["larger size", "budget_counts=total"])
    assert not (tmp_path / "out").exists()
