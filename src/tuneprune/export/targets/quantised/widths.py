"""Which widths of a model a quantised format cannot divide."""

from collections.abc import Iterator

from tuneprune.compress.shape import Shape
from tuneprune.errors import UnsupportedExport


def misfits(shape: Shape, *, inputs: int, outputs: int) -> list[str]:
    """The widths that keep a linear layer from having inputs and outputs in such multiples, in words, none twice."""
    steps = {True: inputs, False: outputs}
    return list(dict.fromkeys(f"{name} {width}" for name, width, is_input in _widths(shape) if width % steps[is_input]))


def refuse_mixture(target: str, shape: Shape) -> None:
    """Refuse packed experts.

    Raises:
        UnsupportedExport: the model is a mixture of experts.
    """
    if any(layer.num_experts for layer in shape.layers):
        raise UnsupportedExport(
            f"{target} quantises linear layers, but a mixture keeps its experts in packed tensors, which would stay as"
            " large as they are. Export it to another target, or keep the Hugging Face folder in bf16."
        )


def _widths(shape: Shape) -> Iterator[tuple[str, int, bool]]:
    """Name and size of each width, and whether it is what a linear reads; else it is what one writes."""
    for block, layer in zip(shape.architecture.blocks, shape.layers, strict=True):
        queries, keys = layer.num_heads * layer.qk_dim, layer.num_kv_heads * layer.qk_dim
        values = layer.num_kv_heads * layer.v_dim
        yield "a residual stream of width", shape.hidden, True
        if len(set(block.attention.inputs)) == 1:
            yield "queries, keys and values of width", queries + keys + values, False
        else:
            yield from (("queries of width", queries, False), ("keys of width", keys, False))
            yield "values of width", values, False
        yield "attention outputs of width", layer.num_heads * layer.v_dim, True
        yield "an MLP of width", layer.mlp_width, True
    if "parts of the stream" in shape.oddities:
        for inputs, *_ in shape.config.pruned["linears"].values():
            yield "a part of the residual stream of width", inputs, True
