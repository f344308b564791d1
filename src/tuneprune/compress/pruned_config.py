"""What `modeling_pruned.resize` has to know of a smaller model that no stock class holds."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from tuneprune.compress.biases import new_biases
from tuneprune.structure.architecture import Architecture, Block, Experts
from tuneprune.structure.edits import EVERYWHERE, Keep, Rotate, Route
from tuneprune.structure.plan import Cuts, Plan
from tuneprune.structure.space import PruningSpace


def layout(
    architecture: Architecture,
    space: PruningSpace,
    plan: Plan,
    shapes: Mapping[str, tuple[int, ...]],
    said: Mapping[str, tuple[int, ...]],
) -> dict[str, dict[str, Any]]:
    """The shapes of all modules that differ from what their layer's own config says.

    Args:
        shapes: those of the smaller model's tensors.
        said: those that the layers' own configs lead to.
    """
    widths = plan.widths(space)
    added = new_biases(space, plan)
    routed = {edit.group: {"experts": len(edit.experts), "top_k": edit.top_k} for edit in plan.of_kind(Route)}
    pruned: dict[str, dict[str, Any]] = {"linears": {}, "norms": {}, "attentions": {}, "mlps": {}, "experts": {}}
    for path in architecture.linears():
        outputs, inputs = shapes[f"{path}.weight"]
        if (outputs, inputs) != said[f"{path}.weight"]:
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
    width = shapes[f"{architecture.embed}.weight"][1]
    if width < architecture.hidden or has_skips(plan):
        skips = [block.path for block in architecture.blocks] if has_skips(plan) else []
        pruned["stream"] = {"width": width, "skips": skips}
    return pruned


def has_skips(plan: Plan) -> bool:
    """Whether the stream changes its basis on the way, which no stock class does."""
    return any(edit.at != EVERYWHERE for edit in plan.of_kind(Rotate))


def skip_cuts(architecture: Architecture, space: PruningSpace, plan: Plan) -> Cuts:
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
    shape = {"qk_dim": 2 * pairs, "v_dim": values}
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


def indices(architecture: Architecture, space: PruningSpace, plan: Plan) -> dict[str, Tensor]:
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


def routers(routes: Iterable[Route], dtype: torch.dtype) -> dict[str, Tensor]:
    """The router weights and the experts over what is kept, by state-dict name."""
    tensors: dict[str, Tensor] = {}
    for edit in routes:
        tensors[f"{edit.group}.router"] = edit.router["weight"].to(dtype)
        tensors[f"{edit.group}.experts"] = edit.experts[:, edit.experts.any(0)]
    return tensors
