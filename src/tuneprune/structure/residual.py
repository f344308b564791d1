"""The space of the residual stream: one group, whose units are the dims that all layers read and write."""

from collections.abc import Iterator, Mapping

from tuneprune.errors import UnsupportedModel
from tuneprune.structure.architecture import Architecture, Block
from tuneprune.structure.space import Gate, Group, Segment, WeightSlice


def residual(
    layer: int, _block: Block, architecture: Architecture, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[Group, ...]:
    """One group for the whole model: the dims of the residual stream (SliceGPT, PAT, Minitron).

    Everything that is added to the stream is masked where a linear writes it, so a removed dim is zero everywhere:
    norms, before or after a sublayer, keep it zero. The group belongs to no layer; it is listed under layer 0.

    Raises:
        UnsupportedModel: the norms are LayerNorms, whose mean still depends on removed dims.
    """
    if layer:
        return ()
    writers = tuple(_writers(architecture))  # refuses experts
    if architecture.norms.is_centred:
        raise UnsupportedModel(
            f"{architecture.family}: space `residual` needs RMSNorm, but this family's LayerNorm subtracts a mean over"
            " all dims of the stream. Use space `width`, `disp` or `depth`."
        )
    stream = Segment((architecture.hidden,), 0)
    addresses = [(f"{module}.weight", 0) for module in architecture.stream_norms()]
    addresses += [(f"{module}.weight", 1) for module in (architecture.embed, *_readers(architecture))]
    for writer in writers:
        addresses += [(f"{writer}.weight", 0), (f"{writer}.bias", 0)]
    embedding = Gate(architecture.embed, "output", stream)
    writes, base_writes = (
        tuple(Gate(writer, "output", stream, base_only) for writer in writers) for base_only in (False, True)
    )
    skips = tuple(
        Gate(f"{block.path}.{skip}", "output", stream)
        for block in architecture.blocks
        for skip in ("attention_skip", "mlp_skip")
    )
    group = Group(
        name="residual",
        layer=0,
        kind="hidden",
        size=architecture.hidden,
        slices=tuple(WeightSlice(param, dim, stream) for param, dim in addresses if param in shapes),
        gates=(embedding, *writes, *skips),
        tuning_gates=(embedding, *base_writes, *skips),
    )
    return (group,)


def _readers(architecture: Architecture) -> Iterator[str]:
    """The linears that read the residual stream; a head that is tied to the embedding has no parameter of its own."""
    for site in architecture.sites():
        yield from site.readers


def _writers(architecture: Architecture) -> Iterator[str]:
    """The linears that write to the residual stream."""
    for block in architecture.blocks:
        yield from (block.attention.out, block.mlp.down)
