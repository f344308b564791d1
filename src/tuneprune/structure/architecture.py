"""A model as plain data, which a family file reads from a Hugging Face config."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeVar, cast

from tuneprune.errors import UnsupportedModel

Part = TypeVar("Part")


@dataclass(frozen=True)
class Projection:
    """`rows` output features of linear `module`, from row `start` (packed projections share one module).

    `interleaved` projections of one module share every head in turn instead of following one another: with 3, the
    rows of head 0 are its q, k and v, then those of head 1 (GPT-NeoX); `start` is then that of the first head.
    """

    module: str
    rows: int
    start: int = 0
    interleaved: int = 1

    @property
    def end(self) -> int:
        """The row after the last one; for the last projection in the module, the module's number of outputs."""
        return self.rows * self.interleaved if self.interleaved > 1 else self.start + self.rows


@dataclass(frozen=True)
class Attention:
    """Self-attention of one block, `num_heads` query heads reading `num_kv_heads` key/value heads.

    `qk_norm` names the norms between the q and k projections and RoPE, if there are any; they normalise every head by
    itself, or with `qk_norm_joins_heads` all heads together. `rotary_dim` is the size of the leading part of every head
    that RoPE rotates, 0 in a layer without RoPE.
    """

    path: str
    q: Projection
    k: Projection
    v: Projection
    out: str
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rotary_dim: int
    qk_norm: tuple[str, str] | None = None
    qk_norm_joins_heads: bool = False

    @property
    def queries_per_kv(self) -> int:
        """Query heads that read one key/value head."""
        return self.num_heads // self.num_kv_heads

    @property
    def inputs(self) -> tuple[str, ...]:
        """The linears that read the residual stream, each once."""
        return tuple(dict.fromkeys((self.q.module, self.k.module, self.v.module)))


@dataclass(frozen=True)
class Mlp:
    """MLP of one block with `width` intermediate channels; one without gating (activation of `up`) has no `gate`."""

    path: str
    gate: Projection | None
    up: Projection
    down: str
    width: int

    @property
    def producers(self) -> tuple[Projection, ...]:
        """The projections that produce the channels."""
        return (self.up,) if self.gate is None else (self.gate, self.up)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The linears that read the residual stream, each once."""
        return tuple(dict.fromkeys(part.module for part in self.producers))


@dataclass(frozen=True)
class Experts:
    """`num_experts` MLPs in place of one; `router` sends every token to a few of them.

    Each tensor in `params`, which include the router's weight, has the experts along its first dimension.
    """

    path: str
    router: str
    params: tuple[str, ...]
    num_experts: int

    @property
    def modules(self) -> tuple[str, ...]:
        """The modules that hold the tensors, each once."""
        return tuple(dict.fromkeys(param.rpartition(".")[0] for param in self.params))


@dataclass(frozen=True)
class Block:
    """One decoder layer: attention and MLP, each with a norm before it, after it or both, added to the residual stream.

    In a `parallel` block both read the same stream (and one norm may serve both) instead of one after the other.
    """

    path: str
    attention: Attention
    feed_forward: Mlp | Experts
    attention_norm: str | None
    mlp_norm: str | None
    attention_post_norm: str | None = None
    mlp_post_norm: str | None = None
    parallel: bool = False

    @property
    def mlp(self) -> Mlp:
        """The MLP of a block that has one.

        Raises:
            UnsupportedModel: the block has experts.
        """
        if isinstance(self.feed_forward, Experts):
            raise UnsupportedModel(
                f"`{self.feed_forward.path}` is a mixture of experts, which has no MLP of its own to cut. Use space"
                " `experts`."
            )
        return self.feed_forward

    @property
    def mlp_linears(self) -> tuple[str, ...]:
        """The linears of the MLP, each once; experts are packed tensors and have none."""
        return () if isinstance(self.feed_forward, Experts) else (*self.mlp.inputs, self.mlp.down)

    @property
    def linears(self) -> tuple[str, ...]:
        """All linears, each once, in forward order."""
        return (*self.attention.inputs, self.attention.out, *self.mlp_linears)

    @property
    def projections(self) -> tuple[Projection, ...]:
        """The projections that read the residual stream: q, k, v, and gate and up of an MLP."""
        attention, mlp = self.attention, self.feed_forward
        return (attention.q, attention.k, attention.v, *(() if isinstance(mlp, Experts) else mlp.producers))

    @property
    def attention_output(self) -> str:
        """The module whose output attention adds to the residual stream."""
        return self.attention_post_norm or self.attention.out

    @property
    def mlp_output(self) -> str:
        """The module whose output the MLP adds to the residual stream."""
        if isinstance(self.feed_forward, Experts):
            return self.mlp_post_norm or self.feed_forward.path
        return self.mlp_post_norm or self.feed_forward.down


@dataclass(frozen=True)
class NormStyle:
    """The kind of all norms of a model: RMSNorm, or LayerNorm if `is_centred`.

    `offset` is added to the stored weight before it multiplies (1 in Gemma).
    """

    is_centred: bool = False
    offset: float = 0.0


@dataclass(frozen=True)
class Site:
    """A place where the residual stream is read: `readers` read it through `norm`, or directly if that is None.

    `writer` is the module whose output was added to the stream last.
    """

    norm: str | None
    readers: tuple[str, ...]
    writer: str

    @property
    def own_norm(self) -> str:
        """The norm; every site of a rotatable architecture has one."""
        assert self.norm is not None
        return self.norm


@dataclass(frozen=True)
class Architecture:
    """A decoder LLM as module paths and widths; `family` is the Hugging Face model type."""

    family: str
    hidden: int
    embed: str
    blocks: tuple[Block, ...]
    final_norm: str
    head: str
    tied: bool
    norms: NormStyle = NormStyle()

    def linears(self) -> Iterator[str]:
        """Paths of all linear modules inside the blocks, each once, in forward order."""
        for block in self.blocks:
            yield from block.linears

    @property
    def is_rotatable(self) -> bool:
        """Whether the residual stream can be written in another basis.

        Every sublayer must read it through an RMSNorm of its own, and whatever is added to it must come from a linear.
        """
        return not self.norms.is_centred and all(
            block.attention_norm is not None
            and block.mlp_norm is not None
            and block.attention_post_norm is None
            and block.mlp_post_norm is None
            and not block.parallel
            and isinstance(block.feed_forward, Mlp)
            for block in self.blocks
        )

    def stream_norms(self) -> Iterator[str]:
        """Paths of all norms of the residual stream and of what is added to it."""
        for block in self.blocks:
            norms = (block.attention_norm, block.attention_post_norm, block.mlp_norm, block.mlp_post_norm)
            yield from dict.fromkeys(norm for norm in norms if norm is not None)
        yield self.final_norm

    def sites(self) -> Iterator[Site]:
        """The places that read the residual stream, in forward order: two in each block, and one before the head."""
        writer = self.embed
        for block in self.blocks:
            yield Site(block.attention_norm, block.attention.inputs, writer)
            readers = block.feed_forward.inputs if isinstance(block.feed_forward, Mlp) else (block.feed_forward.router,)
            yield Site(block.mlp_norm, readers, writer if block.parallel else block.attention_output)
            writer = block.mlp_output
        yield Site(self.final_norm, (self.head,), writer)

    def moves(self, dropped: Collection[str]) -> dict[str, str]:
        """The new path of every remaining block, by its path here, after the `dropped` blocks are removed."""
        paths = [block.path for block in self.blocks]
        return dict(zip((path for path in paths if path not in dropped), paths, strict=False))

    def without(self, dropped: Collection[str]) -> "Architecture":
        """The model without the blocks at these paths, the others renumbered."""
        moves = self.moves(dropped)
        blocks = tuple(_moved(block, block.path, moves[block.path]) for block in self.blocks if block.path in moves)
        return replace(self, blocks=blocks)


def _moved(part: Part, old: str, new: str) -> Part:
    """A block, or a part of its description, with every path under `old` moved to `new`."""
    value: Any = part
    if isinstance(value, str):
        value = new + value.removeprefix(old) if value == old or value.startswith(f"{old}.") else value
    elif isinstance(value, tuple):
        value = tuple(_moved(item, old, new) for item in cast("tuple[object, ...]", value))
    elif is_dataclass(value) and not isinstance(value, type):
        value = replace(value, **{field.name: _moved(getattr(value, field.name), old, new) for field in fields(value)})
    return cast("Part", value)


@dataclass(frozen=True)
class StockShape:
    """Widths that all layers share, as in a stock config; `kept_layers` are numbered as in the dense model."""

    num_heads: int
    num_kv_heads: int
    mlp_width: int
    hidden_size: int
    kept_layers: tuple[int, ...]
    num_experts: int = 0
