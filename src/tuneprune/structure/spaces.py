"""One function per pruning space: the groups of units that can be removed from a model."""

from collections.abc import Callable, Mapping, Sequence

from torch import nn

from tuneprune.errors import ConfigError, UnsupportedModel, suggest
from tuneprune.structure.architecture import Architecture, Attention, Block, Experts, Mlp, Projection
from tuneprune.structure.residual import residual
from tuneprune.structure.space import Gate, Group, Kind, PruningSpace, Segment, WeightSlice

Shapes = Mapping[str, tuple[int, ...]]
UNIT_NAMES: dict[Kind, str] = {
    "kv_group": "KV groups",
    "mlp_channel": "MLP channels",
    "qk_pair": "Q/K rotary pairs",
    "vo_dim": "V/O dims",
    "read": "residual dims read",
    "write": "residual dims written",
    "hidden": "residual dims",
    "block": "layers",
    "expert": "experts",
}
"""Names of the units of a kind in reports and messages."""


def build(name: str, architecture: Architecture, model: nn.Module) -> PruningSpace:
    """The named space of a model that has no adapters yet.

    Raises:
        ConfigError: no such space.
        UnsupportedModel: the space cannot treat this architecture.
    """
    if name not in SPACES:
        known = ", ".join(SPACES)
        raise ConfigError(f"Unknown space `{name}`; known spaces are {known}.{suggest(name, SPACES)}")
    if name != "experts" and any(isinstance(block.feed_forward, Experts) for block in architecture.blocks):
        raise UnsupportedModel(
            f"{architecture.family}: space `{name}` cannot cut mixtures of experts, which this family has in place of"
            " MLPs. Use space `experts`."
        )
    shapes = {path: tuple(parameter.shape) for path, parameter in model.named_parameters()}
    groups = [
        group
        for layer, block in enumerate(architecture.blocks)
        for group in SPACES[name](layer, block, architecture, shapes)
    ]
    tied = {f"{architecture.head}.weight": f"{architecture.embed}.weight"} if architecture.tied else {}
    return PruningSpace(name, tuple(groups), shapes, tied)


def width(layer: int, block: Block, _architecture: Architecture, shapes: Shapes) -> tuple[Group, ...]:
    """Whole KV groups (a key/value head with all query heads that read it) and MLP channels."""
    attention = block.attention
    queries = (attention.num_kv_heads, attention.queries_per_kv * attention.head_dim)
    keys = (attention.num_kv_heads, attention.head_dim)
    if attention.q.interleaved > 1:  # q, k and v of a head are adjacent
        whole = Projection(attention.q.module, attention.q.end)
        producers = ((whole, (attention.num_kv_heads, whole.rows // attention.num_kv_heads)),)
    else:
        producers = ((attention.q, queries), (attention.k, keys), (attention.v, keys))
    # A norm over all heads depends on every query and key, so it must not see those that are removed.
    normed = producers[:2] if attention.qk_norm_joins_heads else ()
    kv = _produced_and_read(
        (attention.path, layer, "kv_group"),
        producers,
        attention.out,
        Segment(queries, 0),
        shapes,
        norms=_norm_weights(attention, tuple(Segment(view, 0) for _, view in normed)),
        gates=tuple(_output_gate(projection, view, 0, base_only=False) for projection, view in normed),
        features=queries[1],
    )
    return kv, mlp_channels(layer, block.mlp, shapes)


def head_dim(layer: int, block: Block, architecture: Architecture, shapes: Shapes) -> tuple[Group, ...]:
    """Dims inside the heads, the same for all heads of a layer, and MLP channels (ATP, arXiv 2412.14426).

    Differs from the official code: Q and K dims are removed in rotary pairs, so that RoPE on the remaining frequencies
    equals the masked model exactly.

    Raises:
        UnsupportedModel: RoPE covers only a part of every head, q, k and v are interleaved, or q and k have LayerNorms.
    """
    attention = block.attention
    whole, rotated = attention.head_dim, attention.rotary_dim
    for reason, applies in {
        f"needs RoPE over the whole head, but here it covers {rotated} of {whole} dims": rotated not in (0, whole),
        "needs q, k and v in separate rows, but here those of every head are together": attention.q.interleaved > 1,
        "cannot cut a LayerNorm of queries and keys, whose mean would change": (
            attention.qk_norm is not None and architecture.norms.is_centred
        ),
    }.items():
        if applies:
            raise UnsupportedModel(f"{architecture.family}: space `head_dim` {reason}. Use space `width` or `disp`.")
    return (
        _qk_pairs(layer, attention, shapes),
        _vo_dims(layer, attention, shapes),
        mlp_channels(layer, block.mlp, shapes),
    )


def disp(layer: int, block: Block, architecture: Architecture, shapes: Shapes) -> tuple[Group, ...]:
    """Every sublayer reads and writes its own subset of the residual stream (DISP-LLM; ATP's second version).

    Five groups per layer: s1 (attention reads), s2 (attention writes), s3 (MLP reads), s4 (MLP channels),
    s5 (MLP writes). Differs from ATP's code: s1 has the full length d instead of a pattern repeated over
    heads.
    """
    stream = Segment((architecture.hidden,), 0)
    attention, mlp = block.attention, block.mlp

    def read(path: str, modules: tuple[str, ...]) -> Group:
        gates = tuple(Gate(module, "input", stream) for module in modules)
        slices = tuple(WeightSlice(f"{module}.weight", 1, stream) for module in modules)
        return Group(f"{path}.read", layer, "read", architecture.hidden, slices, gates, gates)

    def write(path: str, module: str) -> Group:
        slices = _rows(Projection(module, architecture.hidden), stream.view, 0, shapes)
        gate, tuning_gate = (Gate(module, "output", stream, base_only) for base_only in (False, True))
        return Group(f"{path}.write", layer, "write", architecture.hidden, slices, (gate,), (tuning_gate,))

    return (
        read(attention.path, attention.inputs),
        write(attention.path, attention.out),
        read(mlp.path, mlp.inputs),
        mlp_channels(layer, mlp, shapes),
        write(mlp.path, mlp.down),
    )


def depth(layer: int, block: Block, architecture: Architecture, shapes: Shapes) -> tuple[Group, ...]:
    """Whole decoder layers: one unit, everything under the block's path (ShortGPT, arXiv 2403.03853).

    The gates are where attention and MLP are added to the residual stream, so that a removed layer passes its input on.
    Where that is a norm, the tuning gates mask LoRA too, because the norm would blow up the output of LoRA alone.

    Raises:
        UnsupportedModel: the layers hold mixtures of experts.
    """
    mlp = block.mlp
    stream = Segment((1, architecture.hidden), 0)
    sites, linears = (block.attention_output, block.mlp_output), (block.attention.out, mlp.down)
    inside = {param: shape for param, shape in shapes.items() if param.startswith(f"{block.path}.")}
    group = Group(
        name=block.path,
        layer=layer,
        kind="block",
        size=1,
        slices=tuple(WeightSlice(param, 0, Segment((1, shape[0]), 0)) for param, shape in inside.items()),
        gates=tuple(Gate(site, "output", stream) for site in sites),
        tuning_gates=tuple(Gate(site, "output", stream, base_only=site in linears) for site in sites),
        features=0,
    )
    return (group,)


def experts(layer: int, block: Block, architecture: Architecture, _shapes: Shapes) -> tuple[Group, ...]:
    """Whole experts of a mixture: their weights and their rows of the router, which chooses among the remaining ones.

    Raises:
        UnsupportedModel: the model has no experts.
    """
    mixture = block.feed_forward
    if isinstance(mixture, Mlp):
        raise UnsupportedModel(
            f"{architecture.family}: space `experts` needs a mixture of experts, but here every layer has an MLP. Use"
            " space `width` or `disp`."
        )
    segment = Segment((mixture.num_experts,), 0)
    gates = (Gate(mixture.router, "router", segment),)
    slices = tuple(WeightSlice(param, 0, segment) for param in mixture.params)
    return (Group(mixture.path, layer, "expert", mixture.num_experts, slices, gates, gates),)


SPACES: dict[str, Callable[[int, Block, Architecture, Shapes], tuple[Group, ...]]] = {
    "width": width,
    "head_dim": head_dim,
    "disp": disp,
    "residual": residual,
    "depth": depth,
    "experts": experts,
}


def mlp_channels(layer: int, mlp: Mlp, shapes: Shapes) -> Group:
    """The intermediate channels of one MLP: rows of gate and up, columns of down."""
    channels = Segment((mlp.width,), 0)
    producers = tuple((projection, channels.view) for projection in mlp.producers)
    return _produced_and_read((mlp.path, layer, "mlp_channel"), producers, mlp.down, channels, shapes)


def _qk_pairs(layer: int, attention: Attention, shapes: Shapes) -> Group:
    pairs = attention.head_dim // 2
    views = (
        (attention.q, (attention.num_heads, 2, pairs)),
        (attention.k, (attention.num_kv_heads, 2, pairs)),
    )
    joined = tuple(Segment(view, 2) for _, view in views)
    norms = _norm_weights(attention, joined if attention.qk_norm_joins_heads else (Segment((2, pairs), 1),) * 2)
    return Group(
        name=f"{attention.path}.qk",
        layer=layer,
        kind="qk_pair",
        size=pairs,
        slices=(
            *(piece for projection, view in views for piece in _rows(projection, view, 2, shapes)),
            *norms,
        ),
        gates=tuple(_output_gate(projection, view, 2, base_only=False) for projection, view in views),
        tuning_gates=tuple(_output_gate(projection, view, 2, base_only=True) for projection, view in views),
        features=2,
    )


def _vo_dims(layer: int, attention: Attention, shapes: Shapes) -> Group:
    values, outputs = (attention.num_kv_heads, attention.head_dim), (attention.num_heads, attention.head_dim)
    name = f"{attention.path}.vo"
    producers = ((attention.v, values),)
    return _produced_and_read((name, layer, "vo_dim"), producers, attention.out, Segment(outputs, 1), shapes)


def _produced_and_read(
    place: tuple[str, int, Kind],
    producers: Sequence[tuple[Projection, tuple[int, ...]]],
    reader: str,
    units: Segment,
    shapes: Shapes,
    *,
    norms: tuple[WeightSlice, ...] = (),
    gates: tuple[Gate, ...] = (),
    features: int = 1,
) -> Group:
    """The group of units that some projections produce and one linear reads.

    Args:
        place: name, layer and kind of the group.
        producers: every projection, and the view of its rows that has the units along the same axis as `units`.
        units: where the linear `reader` reads the units.
        norms: weights of norms in between.
        gates: further gates that simulate the removal.
    """
    rows = (piece for projection, view in producers for piece in _rows(projection, view, units.axis, shapes))
    return Group(
        *place,
        size=units.view[units.axis],
        slices=(*rows, *norms, WeightSlice(f"{reader}.weight", 1, units)),
        gates=(*gates, Gate(reader, "input", units)),
        tuning_gates=tuple(_output_gate(part, view, units.axis, base_only=True) for part, view in producers),
        features=features,
    )


def _norm_weights(attention: Attention, segments: tuple[Segment, ...]) -> tuple[WeightSlice, ...]:
    """The weights of the norms of queries and of keys, at the segment of each; none if there are no segments."""
    if attention.qk_norm is None or not segments:
        return ()
    return tuple(
        WeightSlice(f"{norm}.weight", 0, segment) for norm, segment in zip(attention.qk_norm, segments, strict=True)
    )


def _rows(projection: Projection, view: tuple[int, ...], axis: int, shapes: Shapes) -> tuple[WeightSlice, ...]:
    """The output features of a projection: rows of the weight, and of the bias where there is one."""
    segment = Segment(view, axis, projection.start)
    names = (f"{projection.module}.weight", f"{projection.module}.bias")
    return tuple(WeightSlice(name, 0, segment) for name in names if name == names[0] or name in shapes)


def _output_gate(projection: Projection, view: tuple[int, ...], axis: int, *, base_only: bool) -> Gate:
    return Gate(projection.module, "output", Segment(view, axis, projection.start), base_only)
