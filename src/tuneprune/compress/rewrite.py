"""Phase one of compressing: a dense model of the same function, written so that the cut can take what a plan names."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tuneprune.compress.biases import add_biases
from tuneprune.compress.modeling_pruned import RotatedBlock
from tuneprune.errors import PlanMismatch
from tuneprune.structure.architecture import Architecture, NormStyle, Site
from tuneprune.structure.edits import EVERYWHERE, Bias, Rotate
from tuneprune.structure.plan import Plan
from tuneprune.structure.space import PruningSpace


@torch.no_grad()
def rewrite(model: PreTrainedModel, architecture: Architecture, space: PruningSpace, plan: Plan) -> PreTrainedModel:
    """The dense model as the plan's edits other than removals leave it. Consumes `model`; LoRA must be merged before.

    What a fresh process finds in the smaller model is compared with this model under the plan's masks.

    Raises:
        PlanMismatch: the plan belongs to another space, or its bases do not fit the model.
    """
    plan.check(space)
    add_biases(model, plan.of_kind(Bias))  # in the dense basis, so before any rotation
    rotations = {edit.at: edit.basis for edit in plan.of_kind(Rotate)}
    if rotations:
        _rotate(model, architecture, rotations)
    return model


def _rotate(model: PreTrainedModel, architecture: Architecture, rotations: dict[str, Tensor]) -> None:
    """Write the residual stream in the basis of each place that reads it (SliceGPT, arXiv 2401.15024, theorem 1).

    An RMSNorm without weight commutes with a rotation, so every norm's weight is folded into its readers first.
    """
    sites = list(architecture.sites())
    bases = _bases(architecture, sites, rotations)
    if architecture.tied:
        _untie(model, architecture)
    for site, basis in zip(sites, bases, strict=True):
        assert site.norm is not None
        gain = _fold_gain(model.get_submodule(site.norm), architecture.norms)
        for reader in site.readers:
            weight = _weight(model, reader)
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
        PlanMismatch: the family's norms stand in the way, the plan names only some of the sites, or the bases have
            another size than the stream.
    """
    if not architecture.is_rotatable:
        kind = "LayerNorms, which do" if architecture.norms.is_centred else "norms of what sublayers write, which do"
        raise PlanMismatch(
            f"{architecture.family}: it has {kind} not commute with a rotation. Use a plan without rotations."
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
    """The weight that the norm multiplied with, and from now on does not."""
    stored: Any = norm.weight
    gain = stored.double() + style.offset
    stored.fill_(1.0 - style.offset)
    return gain


def _rotate_writer(writer: nn.Module, basis: Tensor) -> None:
    """Let a linear or an embedding write its output in `basis`."""
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


def _weight(model: PreTrainedModel, module: str) -> Tensor:
    return model.get_parameter(f"{module}.weight")
