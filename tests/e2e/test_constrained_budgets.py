"""Protected layers and exact widths by every method, and budgets that cannot be met, through the command line."""

import json
import re

import pytest
import yaml
from helpers import tiny_runs
from helpers.tiny_tuning import ATP, setting

from tuneprune import methods
from tuneprune.budget import Budget
from tuneprune.errors import ConfigError, TunePruneError

EVERY = [(name, space) for name, method in methods.registry().items() for space in method.spaces]
SMALL = {
    "atp": ATP,
    "atp sampled": ATP | {"decisions": "sampled"},
    "tomoe": {"name": "tomoe", "prior_batches": 2, "generator_size": 8},
    "short contiguous": {"name": "short", "contiguous": True},
    "flap": {"name": "flap", "bias": False},
    "flap manual": {"name": "flap", "bias": False, "structure": "ul-mm"},
    "llm_pruner": {"name": "llm_pruner", "batches": 2},
    "minitron": {"name": "minitron", "uniform": False},
    "minitron uniform": {"name": "minitron"},
}
CASES = [*EVERY, ("atp sampled", "width"), ("short contiguous", "depth"), ("flap manual", "width")]


def decided(folder, name, space, budget, **options):
    """The masks of a method's plan, and those of every step."""
    method = methods.build(SMALL.get(name, {"name": name}))
    made = setting(folder, space_name=space, lora=not method.one_shot, steps=4, **options)
    budget = budget.on(made.space)
    method.check(made.space, budget)
    search = method.begin(made.subject, budget)
    seen = []
    if not method.one_shot:
        before = search.before_step
        search.before_step = lambda step: (before(step), seen.append(search.masks()))[0]
        made.tuner.run(search)
    return made.space, search.plan(), seen


@pytest.mark.parametrize(("name", "space_name"), [case for case in CASES if case[1] not in ("residual", "experts")])
def test_every_method_keeps_protected_layers_at_every_step(tmp_path, name, space_name):
    layers = {} if space_name == "depth" else {"num_hidden_layers": 3}
    space, plan, seen = decided(tmp_path, name, space_name, Budget(keep=0.75, protect=[1]), **layers)
    protected = [group.name for group in space.groups if group.layer == 1]
    assert protected
    final = plan.masks(space)
    for masks in [final, *seen]:
        assert all(masks[group].all() for group in protected)
    assert not all(mask.all() for mask in final.values())


@pytest.mark.parametrize("name", ["pat", "slicegpt", "magnitude", "atp"])
def test_one_list_of_dims_has_no_layers_to_protect(tmp_path, name):
    with pytest.raises(ConfigError, match="whose dims belong to all layers"):
        decided(tmp_path, name, "residual", Budget(keep=0.75, protect=[1]))


@pytest.mark.parametrize(("name", "space_name"), [case for case in CASES if case[1] != "depth"])
def test_every_method_keeps_exact_widths_or_says_why_not(tmp_path, name, space_name):
    given = {
        "kv_group": 1,
        "mlp_channel": 30,
        "qk_pair": 3,
        "vo_dim": 5,
        "read": 20,
        "write": 24,
        "hidden": 24,
        "expert": 3,
    }
    present = {
        "width": ("kv_group", "mlp_channel"),
        "head_dim": ("qk_pair", "vo_dim", "mlp_channel"),
        "disp": ("read", "write", "mlp_channel"),
        "residual": ("hidden",),
        "experts": ("expert",),
    }[space_name]
    if name == "cfsp":
        present = ("mlp_channel",)
    budget = Budget(widths={kind: given[kind] for kind in present})
    if name == "tomoe":  # its routers are parameters too
        with pytest.raises(TunePruneError, match="leaves no room for"):
            decided(tmp_path, name, space_name, budget)
        return
    space, plan, _ = decided(tmp_path, name, space_name, budget)
    for group in space.groups:
        kept = int(plan.masks(space)[group.name].sum())
        assert kept == (given[group.kind] if group.kind in present else group.size)


def run_file(folder, model, budget, **sections):
    path = tiny_runs.write_run(folder, model, reference=False, **sections)
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"budget": budget}))
    return path


def test_exact_widths_make_a_stock_model_and_are_recorded(tmp_path, model_folder, tuneprune, capsys):
    path = run_file(
        tmp_path, model_folder, {"widths": {"mlp_channel": 32, "kv_group": 1}}, method={"name": "magnitude"}
    )
    assert tuneprune("validate", path) == 0
    assert "stock Hugging Face" in re.sub(r"\s+", " ", capsys.readouterr().out)
    out = tmp_path / "out"
    assert tuneprune("run", path, "--out", out) == 0
    config = json.loads((out / "model" / "config.json").read_text())
    assert (config["intermediate_size"], config["num_key_value_heads"]) == (32, 1)
    record = json.loads((out / "record.json").read_text())
    assert record["budget"]["widths"] == {"mlp_channel": 32, "kv_group": 1}
    assert tuneprune("run", out / "config.yaml", "--out", out, "--resume") == 0
    assert json.loads((out / "proof.json").read_text())["parameters"]["target"] == record["budget"]["keep"]


def test_protected_layers_are_recorded(tmp_path, model_folder, tuneprune):
    path = run_file(tmp_path, model_folder, {"keep": 0.8, "protect": [-1]})
    assert tuneprune("run", path, "--out", tmp_path / "out") == 0
    assert json.loads((tmp_path / "out" / "record.json").read_text())["budget"]["protect"] == [-1]
    plan = json.loads((tmp_path / "out" / "plan" / "plan.json").read_text())
    assert plan["provenance"]["budget"]["protect"] == [-1]


@pytest.mark.parametrize(
    ("budget", "sections", "said"),
    [
        (
            {"keep": 0.2},
            {"method": {"name": "flap"}},
            "Or choose space `residual` (methods atp, magnitude, pat, random, slicegpt)",
        ),
        ({"keep": 0.8, "protect": [7]}, {}, "there is no layer 7"),
        ({"keep": 0.8, "protect": [0]}, {"method": {"name": "minitron"}}, "or the method's `uniform`"),
        (
            {"keep": 0.8, "protect": ["mlp_channel"]},
            {"space": "head_dim", "method": {"name": "tomoe"}},
            "every MLP whole",
        ),
        ({"widths": {"mlp_channel": 32}}, {"method": {"name": "flap"}}, "leaves no room for the"),
        ({"widths": {"mlp_channel": 32}, "keep": 0.5}, {}, "leave `keep` out"),
    ],
)
def test_impossible_budgets_are_refused_at_once(budget, sections, said, tmp_path, model_folder, tuneprune, capsys):
    assert tuneprune("run", run_file(tmp_path, model_folder, budget, **sections), "--out", tmp_path / "out") == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_neighbours_to_remove_need_room_between_protected_layers(tmp_path):
    with pytest.raises(ConfigError, match="neighbouring layers have to be dropped, but every run of them contains"):
        decided(tmp_path, "short contiguous", "depth", Budget(keep=0.6, protect=[1, 3]))


def test_spaces_that_are_named_as_a_way_out_are_one(tmp_path, model_folder, tuneprune, capsys):
    path = run_file(tmp_path, model_folder, {"keep": 0.2}, method={"name": "magnitude"})
    assert tuneprune("validate", path) == 2
    named = re.findall(r"`(\w+)`", capsys.readouterr().err.partition("Or choose space")[2])
    assert named
    for space in named:
        assert tuneprune("validate", path, "--set", f"space={space}") == 0


@pytest.mark.parametrize("method", ["llm_pruner", "cfsp", "flap", "magnitude"])
def test_the_share_that_is_named_works_for_the_method(method, tmp_path, model_folder, tuneprune, capsys):
    path = run_file(tmp_path, model_folder, {"keep": 0.1}, method={"name": method})
    assert tuneprune("validate", path) == 2
    said = capsys.readouterr().err.replace("budget.keep=0.1", "")
    lowest = max(map(float, re.findall(r"(?:goes down to|keeps at least|budget.keep to) (0\.\d{4})", said)))
    assert tuneprune("validate", path, "--set", f"budget.keep={lowest}") == 0


def test_routers_are_counted_before_any_work(tmp_path, model_folder, tuneprune, capsys):
    path = run_file(tmp_path, model_folder, {"keep": 0.3}, method={"name": "tomoe"}, space="head_dim")
    assert tuneprune("validate", path) == 2
    said = re.search(r"Raise budget.keep to ([\d.]+) or more", capsys.readouterr().err)
    assert tuneprune("validate", path, "--set", f"budget.keep={said[1]}") == 0


def test_comparisons_take_no_widths(tmp_path, model_folder, tuneprune, capsys):
    path = run_file(tmp_path, model_folder, {"widths": {"mlp_channel": 32}})
    assert tuneprune("compare", path, "--methods", "random", "--out", tmp_path / "out") == 2
    assert "budget.widths. Use budget.keep" in capsys.readouterr().err
