"""Plans are saved, loaded, and refused on models they do not fit."""

import json

import pytest
import torch
from helpers.tiny import SPACES, random_masks
from helpers.toy_spaces import tiny_space
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from tuneprune.errors import PlanMismatch
from tuneprune.structure.edits import Bias, Drop, Keep, Rotate, Route, target
from tuneprune.structure.plan import Plan
from tuneprune.structure.space import Group, PruningSpace, Segment, WeightSlice

SPACE = tiny_space("phi3", "head_dim")


@pytest.fixture
def saved(tmp_path):
    plan = Plan.from_masks(random_masks(SPACE), SPACE, {"method": "random", "seed": 3})
    plan.save(tmp_path / "plan")
    return tmp_path / "plan"


@pytest.mark.parametrize("name", SPACES)
def test_a_loaded_plan_does_the_same_as_the_saved_one(tmp_path, name):
    space = tiny_space("qwen2", name)
    plan = Plan.from_masks(random_masks(space), space, {"method": "random", "nested": {"a": [1, 2]}})
    plan.save(tmp_path / "deep" / "plan")
    loaded = Plan.load(tmp_path / "deep" / "plan")
    assert loaded.space == plan.space
    assert loaded.provenance == plan.provenance
    assert [target(edit) for edit in loaded.edits] == [target(edit) for edit in plan.edits]
    before, after = plan.lower(space), loaded.lower(space)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_saving_twice_gives_the_same_bytes(saved, tmp_path):
    Plan.load(saved).save(tmp_path / "again")
    for name in ("plan.json", "plan.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (saved / name).read_bytes()


def test_one_tensor_may_serve_several_groups(tmp_path):
    space = tiny_space()
    units = torch.arange(7)
    Plan(tuple(Keep(f"model.layers.{layer}.mlp", units) for layer in (0, 1)), space.fingerprint).save(tmp_path)
    assert Plan.load(tmp_path).widths(space)["model.layers.1.mlp"] == 7


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_masks_survive_the_way_through_a_plan(data):
    masks = {}
    for group in SPACE.groups:
        kept = data.draw(st.sets(st.integers(0, group.size - 1), min_size=1))
        masks[group.name] = torch.zeros(group.size).index_fill(0, torch.tensor(sorted(kept)), 1.0)
    plan = Plan.from_masks(masks, SPACE)
    assert all(torch.equal(mask, masks[name]) for name, mask in plan.masks(SPACE).items())
    assert plan.widths(SPACE) == {name: int(mask.sum()) for name, mask in masks.items()}


def test_lowering_cuts_packed_projections_in_dense_coordinates():
    space = tiny_space("phi3", "width")  # qkv rows: q 0-31, k 32-47, v 48-63; heads of 8, two KV groups
    masks = space.ones() | {"model.layers.0.self_attn": torch.tensor([0.0, 1.0])}
    cuts = Plan.from_masks(masks, space).lower(space)
    rows = [*range(16, 32), *range(40, 48), *range(56, 64)]
    assert cuts["model.layers.0.self_attn.qkv_proj.weight", 0].tolist() == rows
    assert cuts["model.layers.0.self_attn.o_proj.weight", 1].tolist() == list(range(16, 32))
    assert len(cuts) == 2


def test_groups_without_an_edit_are_kept_whole():
    space = tiny_space()
    plan = Plan((Keep("model.layers.0.mlp", torch.tensor([3, 5])),), space.fingerprint)
    widths = plan.widths(space)
    assert widths.pop("model.layers.0.mlp") == 2
    assert widths == {name: space.by_name[name].size for name in widths}


def test_keeping_everything_cuts_nothing():
    assert Plan.from_masks(SPACE.ones(), SPACE).lower(SPACE) == {}


def test_soft_masks_are_no_plan():
    space = tiny_space()
    soft = {name: mask * 0.5 for name, mask in space.ones().items()}
    with pytest.raises(AssertionError, match="hard masks"):
        Plan.from_masks(soft, space)


@pytest.mark.parametrize("other", [tiny_space("phi3", "width"), tiny_space("phi3", "head_dim", intermediate_size=40)])
def test_a_foreign_plan_is_refused(saved, other):
    plan = Plan.load(saved)
    for use in (plan.check, plan.masks, plan.lower, plan.widths):
        with pytest.raises(PlanMismatch, match=r"belongs to space .* Apply it to the model"):
            use(other)


@pytest.mark.parametrize(
    ("units", "message"),
    [
        ([], "must keep some"),
        ([[1, 2]], "no list of unit numbers"),
        ([0.0, 1.0], "no list of unit numbers"),
        ([-1, 2], "ascending .* from 0 to at most 47"),
        ([2, 48], "ascend"),
        ([2, 2], "ascend"),
        ([5, 2], "ascend"),
    ],
)
def test_units_that_do_not_exist_once_each_are_refused(units, message):
    space = tiny_space()
    plan = Plan((Keep("model.layers.0.mlp", torch.tensor(units)),), space.fingerprint)
    with pytest.raises(PlanMismatch, match=message):
        plan.lower(space)


def test_unknown_and_repeated_groups_are_refused():
    space = tiny_space()
    keep = Keep("model.layers.0.mlp", torch.tensor([1]))
    with pytest.raises(PlanMismatch, match=r"layers\.0\.mlp` twice"):
        Plan((keep, keep), space.fingerprint).check(space)
    with pytest.raises(PlanMismatch, match=r"`elsewhere`, which this space does not have"):
        Plan((Keep("elsewhere", torch.tensor([1])),), space.fingerprint).check(space)


def rewrite(folder, change):
    head = json.loads((folder / "plan.json").read_text())
    (folder / "plan.json").write_text(json.dumps(change(head)))


def edited(key, value):
    return lambda head: head | {"edits": [head["edits"][0] | {key: value}, *head["edits"][1:]]}


def provenance(**entries):
    return lambda head: head | {"provenance": head["provenance"] | entries}


def header_of(size):
    """A safetensors file that declares one tensor of `size` bytes and contains none."""
    text = json.dumps({"x": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    return len(text).to_bytes(8, "little") + text


DAMAGE = {
    "no folder": lambda folder: [path.unlink() for path in folder.iterdir()] and folder.rmdir(),
    "no json": lambda folder: (folder / "plan.json").unlink(),
    "no tensors": lambda folder: (folder / "plan.safetensors").unlink(),
    "truncated json": lambda folder: (folder / "plan.json").write_text((folder / "plan.json").read_text()[:80]),
    "binary json": lambda folder: (folder / "plan.json").write_bytes(b"\xff\xfe\x00"),
    "truncated tensors": lambda folder: (folder / "plan.safetensors").write_bytes(b"\x10\x00"),
    "json list": lambda folder: rewrite(folder, lambda head: [head]),
    "json null": lambda folder: rewrite(folder, lambda head: None),
    "missing key": lambda folder: rewrite(folder, lambda head: {"format": 2}),
    "edits of text": lambda folder: rewrite(folder, lambda head: head | {"edits": ["x"]}),
    "provenance of text": lambda folder: rewrite(folder, lambda head: head | {"provenance": "x"}),
    "unknown edit": lambda folder: rewrite(folder, edited("edit", "fold")),
    "other count": lambda folder: rewrite(folder, edited("kept", 99)),
    "no list of edits": lambda folder: rewrite(folder, lambda head: head | {"edits": {"edit": "keep"}}),
    "an edit without end": lambda folder: rewrite(folder, edited("kept", float("inf"))),
    "nested without end": lambda folder: (folder / "plan.json").write_text("[" * 100_000),
    "a number of thousands of digits": lambda folder: (folder / "plan.json").write_text("9" * 10_000),
    "a space that is none": lambda folder: rewrite(folder, lambda head: head | {"space": ["x"]}),
    "provenance of a space that is none": lambda folder: rewrite(folder, provenance(space=["width"])),
    "larger than any": lambda folder: (folder / "plan.json").write_text(" " * (2**24 + 1)),
    "tensors that are not there": lambda folder: (folder / "plan.safetensors").write_bytes(header_of(2**60)),
    "a header that is not there": lambda folder: (folder / "plan.safetensors").write_bytes(b"\xff" * 7 + b"\x0f"),
    "missing tensor": lambda folder: save_file({"x": torch.zeros(1)}, folder / "plan.safetensors"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_plan_is_refused(saved, damage):
    DAMAGE[damage](saved)
    with pytest.raises(PlanMismatch, match=r"holds no (readable )?plan"):
        Plan.load(saved)


def test_another_format_is_refused(saved):
    rewrite(saved, lambda head: head | {"format": 3})
    (saved / "plan.safetensors").unlink()  # a later format may not even have it
    with pytest.raises(PlanMismatch, match="format 3 is not 2; use the version that wrote it"):
        Plan.load(saved)


BLOCKS = ("model.layers.0", "model.layers.1")


def block_space() -> PruningSpace:
    """Two blocks of one weight each, as in the space `depth`: a block's unit has all of its rows."""
    groups = [
        Group(block, layer, "block", 1, (WeightSlice(f"{block}.weight", 0, Segment((1, 4), 0)),), (), ())
        for layer, block in enumerate(BLOCKS)
    ]
    return PruningSpace("depth", tuple(groups), {f"{block}.weight": (4, 3) for block in BLOCKS})


def all_edits(space: PruningSpace) -> tuple:
    basis = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(1)))[0]
    experts = torch.zeros(3, 48, dtype=torch.bool)
    experts[0, :10] = experts[1, 5:20] = experts[2, 30:31] = True
    return (
        Keep("model.layers.0.self_attn.qk", torch.tensor([0, 2])),
        Rotate("*", basis),
        Bias("model.layers.0.self_attn.o_proj", torch.arange(32.0)),
        Route("model.layers.0.mlp", experts, {"weight": torch.ones(3, 32)}, top_k=2),
    )


def test_every_kind_of_edit_survives_the_way_through_the_files(tmp_path):
    edits = all_edits(SPACE)
    Plan(edits, SPACE.fingerprint).save(tmp_path)
    loaded = Plan.load(tmp_path)
    loaded.check(SPACE)
    assert [type(edit) for edit in loaded.edits] == [type(edit) for edit in edits]
    for kind in (Keep, Rotate, Bias, Route):
        (before,) = [edit for edit in edits if isinstance(edit, kind)]
        (after,) = loaded.of_kind(kind)
        for name, value in vars(before).items():
            found = getattr(after, name)
            if name == "router":
                assert torch.equal(found["weight"], value["weight"])
            else:
                assert torch.equal(found, value) if isinstance(value, torch.Tensor) else found == value


def test_a_routed_group_keeps_the_units_of_any_expert_and_additions_are_counted():
    plan = Plan(all_edits(SPACE), SPACE.fingerprint)
    assert plan.widths(SPACE)["model.layers.0.mlp"] == 21
    assert plan.added(SPACE) == 3 * 32 + 32


def test_an_emptied_block_is_dropped():
    space = block_space()
    plan = Plan.from_masks({BLOCKS[0]: torch.ones(1), BLOCKS[1]: torch.zeros(1)}, space)
    assert plan.edits == (Drop(BLOCKS[1]),)
    assert plan.widths(space) == {BLOCKS[0]: 1, BLOCKS[1]: 0}
    assert space.count(plan.widths(space)) == 12
    with pytest.raises(PlanMismatch, match="drops every block"):
        Plan(tuple(Drop(block) for block in BLOCKS), space.fingerprint).check(space)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (Drop("model.layers.0.mlp"), "does not have"),
        (Bias("model.layers.0.self_attn.o_proj", torch.zeros(31)), "cannot take"),
        (Bias("elsewhere", torch.zeros(32)), "cannot take"),
        (Rotate("*", torch.ones(32, 32)), "not orthonormal"),
        (Rotate("*", torch.ones(32, 31)), "must be square"),
        (Route("model.layers.0.mlp", torch.zeros(2, 48, dtype=torch.bool)), "each hold some of its 48 units"),
        (Route("model.layers.0.mlp", torch.ones(2, 47, dtype=torch.bool)), "each hold some of its 48 units"),
        (Route("model.layers.0.mlp", torch.ones(2, 48, dtype=torch.bool), top_k=3), "to 3 of 2 experts"),
        (Route("model.layers.0.mlp", torch.ones(2, 48, dtype=torch.bool)), "needs one row of `weight` for each of 2"),
        (Route("model.layers.0.mlp", torch.ones(2, 48).bool(), {"weight": torch.ones(3, 32)}), "for each of 2"),
        (Keep("model.layers.0.mlp", torch.tensor(3)), "no list of unit numbers"),
        (Keep("model.layers.0.mlp", torch.tensor([True, False])), "no list of unit numbers"),
        (Keep("model.layers.0.mlp", torch.tensor([1, 2], dtype=torch.complex64)), "no list of unit numbers"),
        (Bias("model.layers.0.self_attn.o_proj", torch.tensor(1.0)), "cannot take"),
        (Bias("model.layers.0.self_attn.o_proj", torch.full((32,), float("nan"))), "numbers that are not finite"),
        (Bias("model.layers.0.self_attn.o_proj", torch.zeros(32, dtype=torch.int32)), "not floating-point ones"),
        (Rotate("*", torch.eye(17)), "must be square, with a width of this model"),
        (Rotate("*", torch.tensor(1.0)), "must be square, with a width of this model"),
        (Rotate("*", torch.full((32, 32), float("nan"))), "numbers that are not finite"),
        (
            Route("model.layers.0.mlp", torch.ones(2, 48).bool(), {"weight": torch.full((2, 32), float("inf"))}),
            "numbers that are not finite",
        ),
        (
            Route("model.layers.0.mlp", torch.ones(2, 48).bool(), {"weight": torch.ones(2, 7)}),
            "rows of 7 numbers .* instead of 32",
        ),
        (Route("elsewhere", torch.ones(2, 48, dtype=torch.bool)), "does not have"),
    ],
)
def test_an_edit_that_does_not_fit_is_refused(edit, message):
    with pytest.raises(PlanMismatch, match=message):
        Plan((edit,), SPACE.fingerprint).check(SPACE)


def test_a_basis_is_looked_at_once(monkeypatch):
    """A model of 32 layers can have 65 bases, and every step of compressing asks for the plan's masks."""
    calls = []
    monkeypatch.setattr(torch, "allclose", lambda *_, **__: calls.append(1) or True)
    plan = Plan(all_edits(SPACE), SPACE.fingerprint)
    for _ in range(3):
        plan.masks(SPACE)
    assert len(calls) == 1
