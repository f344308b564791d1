"""The config entry `pruned` of a model that no stock class can hold, and the tensors that only such a model has."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from tuneprune.structure.architecture import Architecture, Block, Experts
from tuneprune.structure.edits import EVERYWHERE, Bias, Keep, Rotate, Route
from tuneprune.structure.plan import Cuts, Plan
from tuneprune.structure.space import PruningSpace


def pruned_entry(
    architecture: Architecture,
    space: PruningSpace,
    plan: Plan,
    shapes: Mapping[str, tuple[int, ...]],
    stated: Mapping[str, tuple[int, ...]],
) -> dict[str, dict[str, Any]]:
    """The shapes of all modules that differ from their layer's own config, in the form `modeling_pruned.resize` reads.

    Args:
        shapes: those of the smaller model's tensors.
        stated: those that follow from the layers' own configs.
    """
    widths = plan.widths(space)
    added = new_biases(space, plan)
    routed = {edit.group: {"experts": len(edit.experts), "top_k": edit.top_k} for edit in plan.of_kind(Route)}
    pruned: dict[str, dict[str, Any]] = {"linears": {}, "norms": {}, "attentions": {}, "mlps": {}, "experts": {}}
    for path in architecture.linears():
        outputs, inputs = shapes[f"{path}.weight"]
        if (outputs, inputs) != stated[f"{path}.weight"]:
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


def new_biases(space: PruningSpace, plan: Plan) -> list[str]:
    """The linears that have a bias only because of the plan. No stock class of their family has a place for them."""
    return [edit.module for edit in plan.of_kind(Bias) if f"{edit.module}.bias" not in space.shapes]


def has_skips(plan: Plan) -> bool:
    """Whether the stream changes its basis between layers, which it does in no stock class."""
    return any(edit.at != EVERYWHERE for edit in plan.of_kind(Rotate))


def skip_cuts(architecture: Architecture, space: PruningSpace, plan: Plan) -> Cuts:
    """The positions to keep in the matrices on skip connections: those of the stream, in both dimensions."""
    streams = [edit.units for edit in plan.of_kind(Keep) if space.by_name[edit.group].kind == "hidden"]
    skips = [f"{block.path}.{skip}.weight" for block in architecture.blocks for skip in ("attention_skip", "mlp_skip")]
    return {(skip, dim): units for units in streams for skip in skips for dim in (0, 1)}


def attention_shape(block: Block, space: PruningSpace, widths: dict[str, int]) -> dict[str, int]:
    """The shape of an attention that the stock class cannot compute, or the parts of the stream around one that it can.

    Empty if the stock class computes it as it is.
    """
    attention = block.attention
    pairs = widths.get(f"{attention.path}.qk", attention.head_dim // 2)
    values = widths.get(f"{attention.path}.vo", attention.head_dim)
    groups = widths.get(attention.path, attention.num_kv_heads)
    stream = _stream_shape(attention.path, space, widths)
    is_split = len(attention.inputs) == 1 and attention.q.interleaved == 1  # at offsets that follow from the config
    has_own_dims = 2 * pairs < attention.head_dim or values < attention.head_dim
    if not (has_own_dims or (is_split and groups < attention.num_kv_heads)):
        return stream
    shape = {"qk_dim": 2 * pairs, "v_dim": values}
    if 2 * pairs < attention.head_dim:
        shape["rotary"] = 2 * pairs
    return shape | stream


def _stream_shape(path: str, space: PruningSpace, widths: dict[str, int]) -> dict[str, int]:
    """How many dims of the residual stream a sublayer reads and writes, where that is not all of them."""
    groups = {port: space.by_name.get(f"{path}.{port}") for port in ("read", "write")}
    return {port: widths[group.name] for port, group in groups.items() if group and widths[group.name] < group.size}


def index_buffers(architecture: Architecture, space: PruningSpace, plan: Plan) -> dict[str, Tensor]:
    """The index buffers of `modeling_pruned.py`, by state-dict name."""
    kept = {edit.group: edit.units for edit in plan.of_kind(Keep) if len(edit.units) < space.by_name[edit.group].size}
    buffers: dict[str, Tensor] = {}
    for block in architecture.blocks:
        for path in (block.attention.path, block.feed_forward.path):
            ports = (f"{path}.read", f"{path}.write")
            buffers |= {f"{port}_index": kept[port] for port in ports if port in kept}
        pairs = kept.get(f"{block.attention.path}.qk")
        if pairs is not None:
            buffers[f"{block.attention.path}.rotary_index"] = torch.cat([pairs, pairs + block.attention.head_dim // 2])
    return buffers


def router_tensors(routes: Iterable[Route], dtype: torch.dtype) -> dict[str, Tensor]:
    """The router weights, and the experts as sets of the kept units, by state-dict name."""
    tensors: dict[str, Tensor] = {}
    for edit in routes:
        tensors[f"{edit.group}.router"] = edit.router["weight"].to(dtype)
        tensors[f"{edit.group}.experts"] = edit.experts[:, edit.experts.any(0)]
    return tensors
