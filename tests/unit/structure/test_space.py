"""Addresses, counting and identity of pruning spaces."""

import dataclasses
import math

import pytest
import torch
from helpers.tiny import CASES, DENSE, SPACES, tiny_model
from helpers.toy_spaces import tiny_space
from hypothesis import given
from hypothesis import strategies as st

from tuneprune import families
from tuneprune.errors import ConfigError, UnsupportedModel
from tuneprune.structure import spaces
from tuneprune.structure.space import Segment


@st.composite
def segments(draw):
    view = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)))
    return Segment(view, draw(st.integers(0, len(view) - 1)), draw(st.integers(0, 7)))


@given(segments(), st.data())
def test_positions_are_where_spread_puts_the_mask(segment, data):
    size = segment.view[segment.axis]
    units = data.draw(st.lists(st.integers(0, size - 1), unique=True).map(sorted))
    mask = torch.zeros(size).index_fill(0, torch.tensor(units, dtype=torch.long), 1.0)
    spread = segment.spread(mask)
    assert spread.shape == (segment.extent,)
    expected = spread.nonzero().squeeze(1) + segment.start
    assert segment.positions(torch.tensor(units, dtype=torch.long)).sort().values.tolist() == expected.tolist()


@given(segments(), st.integers(0, 1), st.integers(1, 3))
def test_units_own_the_entries_at_their_positions_and_no_others(segment, dim, other):
    size = segment.view[segment.axis]
    shape = [other, other]
    shape[dim] = segment.start + segment.extent + 2
    tensor = torch.arange(math.prod(shape)).view(shape).double()
    owned = segment.by_unit(tensor, dim)
    for unit in range(size):
        expected = tensor.index_select(dim, segment.positions(torch.tensor([unit])))
        assert sorted(owned[unit].tolist()) == sorted(expected.flatten().tolist())


def test_rotary_pairs_are_dims_that_turn_together():
    pairs = Segment((2, 2, 4), 2)  # two heads of eight dims
    assert sorted(pairs.positions(torch.tensor([1])).tolist()) == [1, 5, 9, 13]


@pytest.mark.parametrize(("variant", "name"), CASES)
def test_the_slices_of_every_space_stay_inside_their_tensors_and_never_overlap(variant, name):
    space = tiny_space(variant, name)
    owners = {}
    for group in space.groups:
        assert group.size > 1 or group.kind == "block"
        for piece in group.slices:
            assert piece.segment.view[piece.segment.axis] == group.size
            positions = piece.segment.positions(torch.arange(group.size)).tolist()
            taken = owners.setdefault((piece.param, piece.dim), set())
            assert not taken & set(positions)
            taken |= set(positions)
            assert max(positions) < space.shapes[piece.param][piece.dim]


@given(st.data(), st.sampled_from([(variant, name) for variant in ("llama_mha_biased", "phi3") for name in SPACES]))
def test_exact_and_differentiable_counts_agree(data, case):
    space = SPACE_CASES[case]
    kept = {group.name: data.draw(st.integers(1, group.size)) for group in space.groups}
    masks = {group.name: (torch.arange(group.size) < kept[group.name]).float() for group in space.groups}
    assert space.count(kept) == round(space.parameters_left(masks).item())


SPACE_CASES = {
    (variant, name): tiny_space(variant, name) for variant in ("llama_mha_biased", "phi3") for name in SPACES
}


def test_tied_embeddings_count_once():
    tied = tiny_space("llama", tie_word_embeddings=True)
    untied = tiny_space("llama", tie_word_embeddings=False)
    assert untied.num_parameters - tied.num_parameters == 64 * 32


def test_prunable_parameters_are_those_of_the_tensors_reached():
    space = tiny_space("llama", "width")
    assert space.num_prunable == 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 32 * 48)
    assert tiny_space("llama", "disp").num_prunable == space.num_prunable


def test_counting_is_differentiable_on_soft_masks():
    space = tiny_space()
    masks = {name: torch.full_like(ones, 0.5).requires_grad_() for name, ones in space.ones().items()}
    left = space.parameters_left(masks)
    left.backward()
    per_channel = 3 * 32
    assert masks["model.layers.0.mlp"].grad.tolist() == [per_channel] * 48
    assert left.dtype == torch.float64
    assert left.item() == space.num_parameters - space.num_prunable / 2


def test_fingerprints_tell_models_and_spaces_apart():
    every = [tiny_space(name=name) for name in SPACES]
    every += [tiny_space(intermediate_size=40), tiny_space(num_hidden_layers=3), tiny_space(vocab_size=65)]
    every += [tiny_space("llama_mha_biased"), tiny_space("phi3")]
    assert len({space.fingerprint for space in every}) == len(every)
    assert tiny_space(seed=5).fingerprint == tiny_space(seed=6).fingerprint  # weights are not part of it


def test_fingerprint_sees_every_part_of_an_address():
    space = tiny_space()
    group = space.groups[0]
    piece = group.slices[0]
    moved = dataclasses.replace(piece, segment=dataclasses.replace(piece.segment, start=1))
    other = dataclasses.replace(group, slices=(moved, *group.slices[1:]))
    assert dataclasses.replace(space, groups=(other, *space.groups[1:])).fingerprint != space.fingerprint


def test_fingerprints_are_the_same_in_every_process_and_version():
    """Plans on disk contain this value; if it changes, all of them are refused."""
    assert tiny_space().fingerprint == "53baa2f8c07f1443"


def test_group_names_say_where_a_group_is():
    assert list(tiny_space().by_name) == [
        f"model.layers.{layer}.{part}" for layer in (0, 1) for part in ("self_attn", "mlp")
    ]


def test_unknown_space_is_refused_with_a_suggestion():
    model = tiny_model("llama")
    with pytest.raises(ConfigError, match=r"known spaces are width, head_dim, disp, .*Did you mean `width`"):
        spaces.build("widht", families.describe(model), model)


@pytest.mark.parametrize("variant", DENSE)
def test_a_layer_is_one_unit_of_everything_inside_it(variant):
    space = tiny_space(variant, "depth")
    inside = sum(math.prod(shape) for param, shape in space.shapes.items() if ".layers." in param)
    assert [group.layer for group in space.groups] == [0, 1, 2, 3]
    assert space.num_prunable == inside
    gone = dict.fromkeys(space.by_name, 1) | {space.groups[2].name: 0}
    assert space.num_parameters - space.count(gone) == inside // 4


def test_head_dim_refuses_partial_rotary():
    with pytest.raises(UnsupportedModel, match=r"covers 6 of 8 dims.*width"):
        tiny_space("phi3", "head_dim", partial_rotary_factor=0.75)
    assert tiny_space("phi3", "width", partial_rotary_factor=0.75).groups
