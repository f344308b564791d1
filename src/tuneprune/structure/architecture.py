"""What a model is: pure data that a family file reads off a Hugging Face config."""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Projection:
    """`rows` output features of linear `module`, from row `start` (packed projections share one module)."""

    module: str
    rows: int
    start: int = 0


@dataclass(frozen=True)
class Attention:
    """Self-attention of one block, `num_heads` query heads reading `num_kv_heads` key/value heads.

    `qk_norm` names the RMSNorms over `head_dim` between the q and k projections and RoPE, when there are any.
    `rotary_dim` is the leading part of every head that RoPE turns.
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
    """Gated MLP of one block with `width` intermediate channels."""

    path: str
    gate: Projection
    up: Projection
    down: str
    width: int

    @property
    def inputs(self) -> tuple[str, ...]:
        """The linears that read the residual stream, each once."""
        return tuple(dict.fromkeys((self.gate.module, self.up.module)))


@dataclass(frozen=True)
class Block:
    """One decoder layer: attention and MLP, each behind its own norm, added to the residual stream."""

    path: str
    attention: Attention
    mlp: Mlp
    attention_norm: str
    mlp_norm: str


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

    def linears(self) -> Iterator[str]:
        """Paths of all linear modules inside the blocks, each once, in forward order."""
        for block in self.blocks:
            yield from (*block.attention.inputs, block.attention.out, *block.mlp.inputs, block.mlp.down)


@dataclass(frozen=True)
class StockShape:
    """Widths that all layers share, as a stock config states them; `kept_layers` are numbered in the dense model."""

    num_heads: int
    num_kv_heads: int
    mlp_width: int
    hidden_size: int
    kept_layers: tuple[int, ...]
