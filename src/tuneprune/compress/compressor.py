"""Physical removal: cut every weight once, in dense coordinates, and rebuild what has a new shape."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from tuneprune import families
from tuneprune.compress.biases import new_biases, with_new_biases
from tuneprune.compress.modeling_pruned import epsilon_name, resize, resize_head
from tuneprune.compress.rewrite import rewrite
from tuneprune.errors import PlanMismatch
from tuneprune.structure.architecture import Architecture, Block, Experts
from tuneprune.structure.edits import EVERYWHERE, Drop, Keep, Rotate, Route
from tuneprune.structure.plan import Cuts, Plan
from tuneprune.structure.space import PruningSpace


def compress(model: PreTrainedModel, architecture: Architecture, space: PruningSpace, plan: Plan) -> PreTrainedModel:
    """The smaller model that the plan makes of a dense one: `rewrite`, then `cut`. Consumes `model`.

    Raises:
        PlanMismatch: the plan belongs to another space.
    """
    return cut(rewrite(model, architecture, space, plan), architecture, space, plan)


@torch.no_grad()
def cut(model: PreTrainedModel, architecture: Architecture, space: PruningSpace, plan: Plan) -> PreTrainedModel:
    """The rewritten model without what the plan removes. Consumes `model`; LoRA must be merged before.

    Uniform widths that a stock class can hold come back as that class; ragged ones as the family's class with
    `config.pruned`, which `modeling_pruned.py` reads.

    Raises:
        PlanMismatch: the plan belongs to another space, or drops layers of a model that no stock class holds.
    """
    added = new_biases(space, plan)
    cuts = with_new_biases({**plan.lower(space), **_skip_cuts(architecture, space, plan)}, added)
    widths = plan.widths(space)
    left = _layers_left(model.state_dict(), architecture, {edit.block for edit in plan.of_kind(Drop)})
    tensors = {name: _cut(old, tensor, cuts) for name, (old, tensor) in left.items()}
    narrowed = _narrowed_norms(architecture, space, widths)
    _widen_norms(architecture, narrowed, tensors)
    routes = plan.of_kind(Route)
    is_plain = not (added or routes or _has_skips(plan))
    stock = families.uniform_config(model.config, architecture, space, widths) if is_plain else None
    if stock is not None:
        _scale_projections(architecture, narrowed, tensors)
        return _assemble(stock, tensors, model)
    if plan.of_kind(Drop):
        raise PlanMismatch("The plan drops layers and adds biases, routers or skip matrices too; it can do only one.")
    pruned = layout(architecture, space, plan, tensors)
    pruned["norms"] = _norm_shapes(narrowed, tensors, model)
    own = _indices(architecture, space, plan) | _routers(routes, model.dtype)
    tensors |= {name: tensor.to(model.device) for name, tensor in own.items()}
    model.config.pruned = pruned
    resize(model, pruned)
    resize_head(model, pruned)
    model.load_state_dict(tensors, assign=True)
    model.tie_weights()
    return model


def _assemble(config: PretrainedConfig, tensors: dict[str, Tensor], model: PreTrainedModel) -> PreTrainedModel:
    """A stock model of the new shape, holding the cut tensors and the old generation settings.

    Built in its precision, not cast to it: the frequencies of RoPE stay in float32, as when the model is loaded.
    """
    small: Any = AutoModelForCausalLM.from_config(config, dtype=model.dtype)
    small.to(model.device)
    small.load_state_dict(tensors)
    small.generation_config = model.generation_config
    return small.train(model.training)


def _layers_left(
    tensors: dict[str, Tensor], architecture: Architecture, dropped: set[str]
) -> dict[str, tuple[str, Tensor]]:
    """Old name and tensor of all that is outside of the dropped blocks, by its name when the others are renumbered."""
    moves = architecture.moves(dropped)
    left: dict[str, tuple[str, Tensor]] = {}
    for name, tensor in tensors.items():
        block = next((block.path for block in architecture.blocks if name.startswith(f"{block.path}.")), None)
        if block is None:
            left[name] = (name, tensor)
        elif block in moves:
            left[moves[block] + name.removeprefix(block)] = (name, tensor)
    return left


def _cut(name: str, tensor: Tensor, cuts: Cuts) -> Tensor:
    for dim in range(tensor.ndim):
        if (name, dim) in cuts:
            tensor = tensor.index_select(dim, cuts[name, dim].to(tensor.device))
    return tensor


def _narrowed_norms(architecture: Architecture, space: PruningSpace, widths: dict[str, int]) -> dict[str, float]:
    """The norms that lose some features, each with d / d': the features it had over those it keeps.

    An RMSNorm over the d' kept features equals the one over d of which the others are masked, where its weight grows
    by sqrt(d / d') and its epsilon by d / d'.
    """
    norms = {norm for block in architecture.blocks for norm in block.attention.qk_norm or ()}
    norms |= set(architecture.stream_norms())
    return {
        piece.param.removesuffix(".weight"): group.size / widths[group.name]
        for group in space.groups
        for piece in group.slices
        if piece.param.removesuffix(".weight") in norms and 0 < widths[group.name] < group.size
    }


def _widen_norms(architecture: Architecture, narrowed: dict[str, float], tensors: dict[str, Tensor]) -> None:
    offset = architecture.norms.offset
    for norm, factor in narrowed.items():
        tensors[f"{norm}.weight"] = (tensors[f"{norm}.weight"] + offset) * math.sqrt(factor) - offset


def _scale_projections(architecture: Architecture, narrowed: dict[str, float], tensors: dict[str, Tensor]) -> None:
    """What an epsilon of their own would do for the q/k norms of a stock class, whose config has one for all norms.

    The stream's norms decide on it. The norm of c x at epsilon c^2 e is the norm of x at epsilon e.
    """
    common = narrowed.get(architecture.final_norm, 1.0)
    for block in architecture.blocks:
        parts = zip(block.attention.qk_norm or (), (block.attention.q, block.attention.k), strict=False)
        for norm, projection in parts:
            factor = math.sqrt(common / narrowed.get(norm, 1.0))
            for name in (f"{projection.module}.weight", f"{projection.module}.bias"):
                if factor != 1.0 and name in tensors:
                    tensors[name] = tensors[name] * factor


def _norm_shapes(
    narrowed: dict[str, float], tensors: dict[str, Tensor], model: PreTrainedModel
) -> dict[str, list[float]]:
    """The size and the epsilon of every narrower norm."""
    shapes: dict[str, list[float]] = {}
    for norm, factor in narrowed.items():
        stock: Any = model.get_submodule(norm)
        shapes[norm] = [len(tensors[f"{norm}.weight"]), getattr(stock, epsilon_name(stock)) * factor]
    return shapes


def layout(
    architecture: Architecture,
    space: PruningSpace,
    plan: Plan,
    tensors: dict[str, Tensor],
) -> dict[str, dict[str, Any]]:
    """What `modeling_pruned.resize` needs: the shapes of all modules that differ from the stock model's."""
    widths = plan.widths(space)
    added = new_biases(space, plan)
    routed = {edit.group: {"experts": len(edit.experts), "top_k": edit.top_k} for edit in plan.of_kind(Route)}
    pruned: dict[str, dict[str, Any]] = {"linears": {}, "norms": {}, "attentions": {}, "mlps": {}, "experts": {}}
    for path in architecture.linears():
        outputs, inputs = tensors[f"{path}.weight"].shape
        if (outputs, inputs) != space.shapes[f"{path}.weight"]:
            pruned["linears"][path] = [inputs, outputs]
        if path in added:
            pruned["linears"][path] = [inputs, outputs, True]
    for block in architecture.blocks:
        attention = attention_shape(block, space, widths)
        if attention:
            pruned["attentions"][block.attention.path] = attention
        mlp = _stream_shape(block.feed_forward.path, space, widths) | routed.get(block.feed_forward.path, {})
        if mlp:
            pruned["mlps"][block.feed_forward.path] = mlp
        experts = space.by_name.get(block.feed_forward.path)
        if isinstance(block.feed_forward, Experts) and experts is not None and widths[experts.name] < experts.size:
            pruned["experts"] |= dict.fromkeys(block.feed_forward.modules, widths[experts.name])
    width = tensors[f"{architecture.embed}.weight"].shape[1]
    if width < architecture.hidden or _has_skips(plan):
        skips = [block.path for block in architecture.blocks] if _has_skips(plan) else []
        pruned["stream"] = {"width": width, "skips": skips}
    return pruned


def _has_skips(plan: Plan) -> bool:
    """Whether the stream changes its basis on the way, which no stock class does."""
    return any(edit.at != EVERYWHERE for edit in plan.of_kind(Rotate))


def _skip_cuts(architecture: Architecture, space: PruningSpace, plan: Plan) -> Cuts:
    """The positions to keep in the matrices on skip connections: those of the stream, in both dimensions."""
    streams = [edit.units for edit in plan.of_kind(Keep) if space.by_name[edit.group].kind == "hidden"]
    skips = [f"{block.path}.{skip}.weight" for block in architecture.blocks for skip in ("attention_skip", "mlp_skip")]
    return {(skip, dim): units for units in streams for skip in skips for dim in (0, 1)}


def attention_shape(block: Block, space: PruningSpace, widths: dict[str, int]) -> dict[str, int]:
    """The shape of an attention that the stock class cannot run, or the parts of the stream around one that it can.

    Empty where the stock class runs it as it is.
    """
    attention = block.attention

    def kept(name: str, default: int) -> int:
        return widths.get(name, default)

    pairs = kept(f"{attention.path}.qk", attention.head_dim // 2)
    values = kept(f"{attention.path}.vo", attention.head_dim)
    groups = kept(attention.path, attention.num_kv_heads)
    stream = _stream_shape(attention.path, space, widths)
    is_split = len(attention.inputs) == 1 and attention.q.interleaved == 1  # at offsets that the config dictates
    has_own_dims = 2 * pairs < attention.head_dim or values < attention.head_dim
    if not (has_own_dims or (is_split and groups < attention.num_kv_heads)):
        return stream
    shape = {
        "num_heads": groups * attention.queries_per_kv,
        "num_kv_heads": groups,
        "qk_dim": 2 * pairs,
        "v_dim": values,
    }
    if 2 * pairs < attention.head_dim:
        shape["rotary"] = 2 * pairs
    return shape | stream


def _stream_shape(path: str, space: PruningSpace, widths: dict[str, int]) -> dict[str, int]:
    """The parts of the residual stream a sublayer reads and writes, where they are not all of it."""
    shape = {}
    for port in ("read", "write"):
        group = space.by_name.get(f"{path}.{port}")
        if group is not None and widths[group.name] < group.size:
            shape[port] = widths[group.name]
    return shape


def _indices(architecture: Architecture, space: PruningSpace, plan: Plan) -> dict[str, Tensor]:
    """The index buffers of `modeling_pruned.py`, by state-dict name."""
    kept = {edit.group: edit.units for edit in plan.of_kind(Keep) if len(edit.units) < space.by_name[edit.group].size}
    indices = {}
    for block in architecture.blocks:
        paths: Iterable[str] = (block.attention.path, block.feed_forward.path)
        for path in paths:
            for port in ("read", "write"):
                if f"{path}.{port}" in kept:
                    indices[f"{path}.{port}_index"] = kept[f"{path}.{port}"]
        pairs = kept.get(f"{block.attention.path}.qk")
        if pairs is not None:
            indices[f"{block.attention.path}.rotary_index"] = torch.cat([pairs, pairs + block.attention.head_dim // 2])
    return indices


def _routers(routes: Iterable[Route], dtype: torch.dtype) -> dict[str, Tensor]:
    """The router weights and the experts over what is kept, by state-dict name."""
    tensors: dict[str, Tensor] = {}
    for edit in routes:
        tensors[f"{edit.group}.router"] = edit.router["weight"].to(dtype)
        tensors[f"{edit.group}.experts"] = edit.experts[:, edit.experts.any(0)]
    return tensors
