"""Phase one of compressing: apply the edits of a plan other than removals to the dense model, so that it can be cut."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tuneprune.compress.modeling_pruned import RotatedBlock
from tuneprune.errors import PlanMismatch
from tuneprune.structure.architecture import Architecture, NormStyle, Site
from tuneprune.structure.edits import EVERYWHERE, Bias, Rotate
from tuneprune.structure.plan import Plan
from tuneprune.structure.space import PruningSpace


@torch.no_grad()
def rewrite(model: PreTrainedModel, architecture: Architecture, space: PruningSpace, plan: Plan) -> PreTrainedModel:
    """The dense model after all edits of the plan but removals. Consumes `model`; LoRA must be merged before.

    The proof compares the smaller model in a fresh process with this model under the plan's masks.

    Raises:
        PlanMismatch: the plan belongs to another space, or its bases do not fit the model.
    """
    plan.check(space)
    add_biases(model, plan.of_kind(Bias))  # in the dense basis, so before any rotation
    rotations = {edit.at: edit.basis for edit in plan.of_kind(Rotate)}
    if rotations:
        _rotate(model, architecture, rotations)
    return model


@torch.no_grad()
def add_biases(model: PreTrainedModel, edits: Iterable[Bias]) -> None:
    """Add the constants to the biases of the linears, in place; a linear without a bias gets one."""
    for edit in edits:
        linear: Any = model.get_submodule(edit.module)
        bias = edit.bias.to(linear.weight)
        if linear.bias is None:
            linear.bias = nn.Parameter(bias.clone(), requires_grad=linear.weight.requires_grad)
        else:
            linear.bias.add_(bias)


def _rotate(model: PreTrainedModel, architecture: Architecture, rotations: dict[str, Tensor]) -> None:
    """Write the residual stream in the basis of each place that reads it (SliceGPT, arXiv 2401.15024, theorem 1).

    An RMSNorm without weight commutes with a rotation, so every norm's weight is folded into its readers first.
    """
    sites = list(architecture.sites())
    bases = _bases(architecture, sites, rotations)
    if architecture.tied:
        _untie(model, architecture)
    for site, basis in zip(sites, bases, strict=True):
        gain = _fold_gain(model.get_submodule(site.own_norm), architecture.norms)
        for reader in site.readers:
            weight = model.get_parameter(f"{reader}.weight")
            weight.copy_((weight.double() * gain.to(weight.device)) @ basis.to(weight.device).double())
        _rotate_writer(model.get_submodule(site.writer), basis)
    if EVERYWHERE not in rotations:
        _change_bases(model, architecture, bases)


def _change_bases(model: PreTrainedModel, architecture: Architecture, bases: Sequence[Tensor]) -> None:
    """Carry the stream on every skip connection from the basis before it to the one after: x Q_i^T Q_(i+1)."""
    for index, block in enumerate(architecture.blocks):
        parent, _, name = block.path.rpartition(".")
        rotated = RotatedBlock(model.get_submodule(block.path), architecture.hidden)
        skips = (rotated.attention_skip, rotated.mlp_skip)
        for skip, (before, after) in zip(skips, pairwise(bases[2 * index : 2 * index + 3]), strict=True):
            skip.weight.copy_(after.double().T @ before.double())
        setattr(model.get_submodule(parent), name, rotated.train(model.training))


def _bases(architecture: Architecture, sites: Sequence[Site], rotations: dict[str, Tensor]) -> list[Tensor]:
    """The basis in which the stream is read at every site.

    Raises:
        PlanMismatch: the family's norms do not allow it, the plan names only some of the sites, or the bases differ in
            size from the stream.
    """
    if not architecture.is_rotatable:
        kind = "LayerNorms" if architecture.norms.is_centred else "norms of what sublayers write"
        raise PlanMismatch(
            f"{architecture.family}: its {kind} do not commute with a rotation. Use a plan without rotations."
        )
    names = {EVERYWHERE} if EVERYWHERE in rotations else {site.norm for site in sites}
    if set(rotations) != names:
        raise PlanMismatch(
            f"The plan rotates the stream at {len(rotations)} places; it takes one basis for all, or one for each of"
            f" the {len(sites)} norms that read it."
        )
    bases = [rotations.get(EVERYWHERE, rotations.get(site.norm or "")) for site in sites]
    found = [basis for basis in bases if basis is not None]
    if any(len(basis) != architecture.hidden for basis in found):
        raise PlanMismatch(f"The plan's bases do not fit a residual stream of {architecture.hidden} dims.")
    return found


def _fold_gain(norm: nn.Module, style: NormStyle) -> Tensor:
    """Take the weight out of a norm, which multiplies by one from then on."""
    stored: Any = norm.weight
    gain = stored.double() + style.offset
    stored.fill_(1.0 - style.offset)
    return gain


def _rotate_writer(writer: nn.Module, basis: Tensor) -> None:
    """Make a linear or an embedding write its output in `basis`."""
    weight: Any = writer.weight
    basis = basis.to(weight.device).double()
    if isinstance(writer, nn.Embedding):
        weight.copy_(weight.double() @ basis)
        return
    weight.copy_(basis.T @ weight.double())
    bias: Any = writer.bias
    if bias is not None:
        bias.copy_(bias.double() @ basis)


def _untie(model: PreTrainedModel, architecture: Architecture) -> None:
    """Give the head a tensor of its own."""
    head: Any = model.get_submodule(architecture.head)
    head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=head.weight.requires_grad)
    model.config.tie_word_embeddings = False
