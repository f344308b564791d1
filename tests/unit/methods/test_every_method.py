"""What holds for every registered method; a new one is covered the moment its file exists."""

import pytest
import torch
from helpers.sweeps import quick_where
from helpers.tiny_tuning import ATP, hooks_of, setting

from tuneprune import methods
from tuneprune.budget import Budget, count_parameters
from tuneprune.errors import ConfigError
from tuneprune.structure.edits import tensors_of
from tuneprune.structure.weights import lora_entries, lora_norms

EVERY = [(name, space) for name, method in methods.registry().items() for space in method.spaces]
BUDGETS = [
    Budget(keep=0.6),
    Budget(keep=0.7, of="prunable"),
    Budget(keep=0.62, per_layer="uniform"),
    Budget(keep=0.65, multiple_of=4),
]


def readers(space):
    """The frozen weights that read gated units: what a compensation may change."""
    gates = [gate for group in space.groups for gate in group.gates if gate.side == "input"]
    return {f"{gate.module}.base_layer.weight" for gate in gates}


def options(name):
    small = {"tomoe": {"prior_batches": 2, "generator_size": 8}}
    return ATP if name == "atp" else {"name": name, **small.get(name, {})}


RESUMED = [
    *((name, space, {}) for name, space in EVERY if not methods.registry()[name].one_shot),
    ("atp", "width", {"decisions": "sampled", "compensate": False, "generator_learning_rate": 0.3}),
    ("atp", "width", {"compensate": True, "control_share": 0.5}),
    ("atp", "width", {"gate_gradients": "training", "generator_learning_rate": 0.3}),
    ("apt", "width", {"every": 2, "fall_share": 0.3}),
    ("hesso", "width", {"corrective": True, "end_share": 0.8, "periods": 2}),
    ("loraprune", "width", {"every": 1, "revisable": True}),
    ("pat", "residual", {"milestone_share": 0.5}),
]
"""Every method that decides while it tunes, and some of their options."""


def decided(plan):
    """What a plan says, as plain lists."""
    return [{name: tensor.tolist() for name, tensor in tensors_of(edit).items()} for edit in plan.edits]


@pytest.mark.parametrize(
    ("variant", "name", "space_name"),
    quick_where(
        lambda variant, name, space: (variant == "phi3") == (space == methods.registry()[name].spaces[0]),
        ((variant, *case) for variant in ("llama", "phi3") for case in EVERY),
    ),
)
def test_ends_in_a_plan_within_the_budget_and_leaves_nothing_behind(tmp_path, variant, name, space_name):
    for index, budget in enumerate(BUDGETS):
        method = methods.build(options(name))
        made = setting(tmp_path / str(index), variant=variant, space_name=space_name, lora=not method.one_shot, steps=3)
        modules = {path for path, _ in made.model.named_modules()}
        before = {path: p.clone() for path, p in made.model.named_parameters() if not p.requires_grad}
        search = method.begin(made.subject, budget)
        if not method.one_shot:
            made.tuner.run(search)
        changed = {path for path, value in before.items() if not torch.equal(value, made.model.get_parameter(path))}
        assert changed <= (readers(made.space) if getattr(method, "compensate", False) else set())
        plan = search.plan()
        plan.check(made.space)
        masks = plan.masks(made.space)
        assert count_parameters(made.space, masks) + plan.added(made.space) <= budget.target(made.space)
        widths = [int(mask.sum()) for mask in masks.values()]
        assert any(widths) if space_name == "depth" else all(widths)
        assert {path for path, _ in made.model.named_modules()} == modules
        assert hooks_of(made.model) == 0
        for group in made.space.groups:
            if lora_entries(made.model, group):
                assert (lora_norms(made.model, group)[masks[group.name] == 0] == 0).all()


@pytest.mark.parametrize(
    ("name", "space_name"), quick_where(lambda name, space: space == methods.registry()[name].spaces[-1], EVERY)
)
def test_same_seed_same_plan(tmp_path, name, space_name):
    plans = []
    for attempt in range(2):
        method = methods.build(options(name))
        made = setting(tmp_path / str(attempt), space_name=space_name, lora=not method.one_shot, steps=3)
        search = method.begin(made.subject, Budget())
        if not method.one_shot:
            made.tuner.run(search)
        plans.append(decided(search.plan()))
    assert plans[0] == plans[1]


class Interrupt(Exception):
    """The process ends here."""


@pytest.mark.parametrize("stop", [2, 5])
@pytest.mark.parametrize(
    ("name", "space_name", "more"),
    quick_where(lambda name, space, more: more or space == methods.registry()[name].spaces[0], RESUMED),
    ids=lambda value: value if isinstance(value, str) else ",".join(value),
)
def test_resumed_equals_uninterrupted(tmp_path, name, space_name, more, stop):
    def run(folder, *, until=None, resume=False):
        """What a search of 12 steps ends with, or a checkpoint after every `stop` steps where it is interrupted."""
        made = setting(tmp_path / folder, space_name=space_name, steps=12, checkpoint_every=stop, dropout=0.2)

        def watch(metrics):
            if metrics["step"] == until:
                raise Interrupt

        made.tuner.observe = watch
        search = methods.build(options(name) | more).begin(made.subject, Budget(keep=0.7))
        made.tuner.run(search, fingerprint="f", resume=resume)
        state = search.state_dict()
        return {"plan": decided(search.plan()), "state": state, "weights": dict(made.model.named_parameters())}

    whole = run("whole")
    with pytest.raises(Interrupt):
        run("parts", until=stop + 1)
    assert_same(run("parts", resume=True), whole)


def assert_same(found, expected, name=""):
    """Nested states, the tensors in them to the bit."""
    assert type(found) is type(expected), name
    if isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected), name
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys(), name
        for key, value in expected.items():
            assert_same(found[key], value, f"{name}.{key}")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), name
        for index, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_same(one, other, f"{name}.{index}")
    else:
        assert found == expected, name


def test_random_follows_its_seed(tmp_path):
    plans = []
    for seed in (1, 2):
        made = setting(tmp_path / str(seed), lora=False, seed=seed)
        plan = methods.build({"name": "random"}).begin(made.subject, Budget()).plan()
        plans.append(decided(plan))
    assert plans[0] != plans[1]


def test_magnitude_keeps_the_largest(tmp_path):
    made = setting(tmp_path, lora=False)
    group = next(g for g in made.space.groups if g.kind == "mlp_channel")
    layer = made.model.model.layers[group.layer].mlp
    with torch.no_grad():
        layer.gate_proj.weight[10:30] *= 10
    kept = methods.build({"name": "magnitude"}).begin(made.subject, Budget(keep=0.6)).plan().widths(made.space)
    masks = methods.build({"name": "magnitude"}).begin(made.subject, Budget(keep=0.6)).plan().masks(made.space)
    assert kept[group.name] >= 20
    assert masks[group.name][10:30].all()


def test_a_preset_is_its_method_under_another_name_and_set_otherwise():
    assert methods.presets()["atp-paper"] is methods.registry()["atp"]
    paper = methods.build({"name": "atp-paper", "temperature": 0.2})
    assert (paper.title, paper.decisions, paper.prior, paper.temperature) == ("atp-paper", "sampled", "none", 0.2)
    assert methods.build({"name": paper.title, **paper.model_dump(mode="json")}) == paper
    assert methods.build({"name": "atp"}).title == "atp"
    assert not methods.presets().keys() & methods.registry().keys()


def test_a_plan_is_signed_with_the_preset(tmp_path):
    made = setting(tmp_path)
    search = methods.build(options("atp") | {"name": "atp-paper"}).begin(made.subject, Budget())
    assert search.plan().provenance["method"]["name"] == "atp-paper"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "atpp"}, r"Unknown method `atpp`; known methods are .*Did you mean `atp`"),
        ({}, r"Unknown method `None`"),
        ({"name": "atp", "temprature": 1}, r"method.temprature: `atp` has no such option.*Did you mean `temperature`"),
        ({"name": "random", "temperature": 1}, r"`random` has no such option; it has none"),
        ({"name": "atp", "control_share": 2}, r"method.control_share: .*less than or equal to 1, got 2"),
        ({"name": "atp", "generator": "lstm"}, r"method.generator: .*'transformer' or 'free'"),
    ],
)
def test_options_are_checked(settings, message):
    with pytest.raises(ConfigError, match=message):
        methods.build(settings)
