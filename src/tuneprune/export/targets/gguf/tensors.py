"""The tensors of a GGUF file, each made from those of the exported folder when it is written."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tuneprune.compress.shape import LayerShape, Shape
from tuneprune.errors import UnsupportedExport
from tuneprune.export.targets.gguf import rope
from tuneprune.export.targets.gguf.architectures import Host
from tuneprune.export.targets.gguf.scales import folded
from tuneprune.export.weights import Weights
from tuneprune.structure.architecture import Attention, Block, Experts, Mlp, Projection

STORED = {"lm_head": "embed_out"}
"""Names in memory that differ on disk (GPT-NeoX)."""
MIXTURES = {
    "mixtral": ("block_sparse_moe", {"ffn_gate_exps": "w1", "ffn_up_exps": "w3", "ffn_down_exps": "w2"}),
    "qwen3_moe": (
        "mlp",
        {"ffn_gate_exps": "gate_proj", "ffn_up_exps": "up_proj", "ffn_down_exps": "down_proj"},
    ),
}
"""Names on disk of mixtures and of the weights of one expert; in memory, experts are packed."""


@dataclass(frozen=True)
class Rows:
    """`count` rows of one tensor of the folder: those from `start`, or one `part` of every head of `head` rows."""

    name: str
    start: int
    count: int
    parts: int = 1
    part: int = 0
    head: int = 0

    def take(self, weights: Weights) -> Tensor:
        """The rows, read now."""
        rows = weights[self.name]
        if self.parts > 1:
            return rows.unflatten(0, (-1, self.parts, self.head))[:, self.part].flatten(0, 1)
        return rows[self.start : self.start + self.count]


@dataclass(frozen=True)
class Piece:
    """One tensor of the file, its dims outputs first as in torch, made of `rows` one after another or `stacked`.

    Where `heads` is given, the pairs that RoPE turns in each head's first `rotary` rows become neighbours. `offset` is
    added, then `scale` multiplied.
    """

    name: str
    rows: tuple[Rows, ...]
    shape: tuple[int, ...]
    stacked: bool = False
    heads: int = 0
    rotary: int = 0
    offset: float = 0.0
    scale: float = 1.0

    def make(self, weights: Weights) -> Tensor:
        """The values, in the precision of the folder or, where they were changed, in float32."""
        parts = [rows.take(weights) for rows in self.rows]
        joined = torch.stack(parts) if self.stacked else torch.cat(parts) if len(parts) > 1 else parts[0]
        if self.heads and self.rotary:
            joined = _neighbours(joined, self.heads, self.rotary)
        if self.offset or self.scale != 1.0:
            joined = (joined.float() + self.offset) * self.scale
        return joined


@dataclass(frozen=True)
class Constant:
    """A tensor of the file that no tensor of the folder holds."""

    name: str
    values: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Its dims."""
        return tuple(self.values.shape)

    def make(self, weights: Weights) -> Tensor:  # noqa: ARG002  (as for a piece)
        """The values."""
        return self.values


def tensors(weights: Weights, shape: Shape, host: Host) -> list[Piece | Constant]:
    """All tensors of the file, in its order.

    Raises:
        UnsupportedExport: the model has a bias that the architecture has no place for.
    """
    maker = _Maker(weights, shape, host, folded(host, shape))
    found: list[Piece | Constant] = [*maker.outer()]
    turned = shape.layers[0].qk_dim if host.interleaves else rope.rotary_width(shape.architecture)
    divisors = rope.factors(shape.config, shape.architecture, turned)[0] if host.factors else {}
    found += [Constant(f"{name}.weight", values) for name, values in divisors.items()]
    for index, (block, layer) in enumerate(zip(shape.architecture.blocks, shape.layers, strict=True)):
        found += maker.block(index, block, layer)
    return found


@dataclass(frozen=True)
class _Maker:
    weights: Weights
    shape: Shape
    host: Host
    scales: dict[str, float]

    def outer(self) -> Iterator[Piece]:
        """The embedding, the head and the norm before it."""
        outer = self.shape.architecture
        yield from self.whole("token_embd", outer.embed)
        yield from self.norm("output_norm", outer.final_norm)
        if not outer.tied:
            head = outer.head if f"{outer.head}.weight" in self.weights else STORED[outer.head]
            yield from self.whole("output", head)
        elif self.host.head == "own":
            yield from self.whole("output", outer.embed)

    def block(self, index: int, block: Block, layer: LayerShape) -> Iterator[Piece]:
        """One decoder layer."""
        prefix = f"blk.{index}."
        names = {
            "attn_norm": block.attention_norm,
            "post_attention_norm": block.attention_post_norm,
            "ffn_norm": None if block.mlp_norm == block.attention_norm else block.mlp_norm,
            "post_ffw_norm": block.mlp_post_norm,
        }
        for role, path in names.items():
            if path is not None:
                yield from self.norm(role, path, prefix)
        yield from self.attention(prefix, block.attention, layer)
        if isinstance(block.feed_forward, Experts):
            yield from self.experts(prefix, block.path, layer)
        else:
            yield from self.mlp(prefix, block.feed_forward, layer)

    def attention(self, prefix: str, attention: Attention, layer: LayerShape) -> Iterator[Piece]:
        """Projections and norms of attention."""
        counts = (
            layer.num_heads * layer.qk_dim,
            layer.num_kv_heads * layer.qk_dim,
            layer.num_kv_heads * layer.v_dim,
        )
        parts = _follow((attention.q, attention.k, attention.v), counts, attention.head_dim)
        if self.host.fuses_qkv:
            yield from self.linear("attn_qkv", prefix, parts)
        else:
            heads = (layer.num_heads, layer.num_kv_heads, 0) if self.host.interleaves else (0, 0, 0)
            for role, part, number in zip(("attn_q", "attn_k", "attn_v"), parts, heads, strict=True):
                yield from self.linear(role, prefix, (part,), number, attention.rotary_dim)
        for role, path in zip(("attn_q_norm", "attn_k_norm"), attention.qk_norm or (), strict=False):
            yield from self.norm(role, path, prefix)
        yield from self.whole("attn_output", attention.out, prefix)

    def mlp(self, prefix: str, mlp: Mlp, layer: LayerShape) -> Iterator[Piece]:
        """An MLP, gated or plain."""
        parts = _follow(mlp.producers, (layer.mlp_width,) * len(mlp.producers), 0)
        if self.host.fuses_up or mlp.gate is None:
            yield from self.linear("ffn_up", prefix, parts)
        else:
            for role, part in zip(("ffn_gate", "ffn_up"), parts, strict=True):
                yield from self.linear(role, prefix, (part,))
        yield from self.whole("ffn_down", mlp.down, prefix)

    def experts(self, prefix: str, path: str, layer: LayerShape) -> Iterator[Piece]:
        """A router, and the experts' weights as one tensor of each kind."""
        folder, names = MIXTURES[self.shape.config.model_type]
        yield from self.whole("ffn_gate_inp", f"{path}.{folder}.gate", prefix)
        for role, name in names.items():
            experts = [f"{path}.{folder}.experts.{index}.{name}.weight" for index in range(layer.num_experts)]
            one = self.weights.shape(experts[0])
            rows = tuple(Rows(expert, 0, one[0]) for expert in experts)
            yield Piece(f"{prefix}{role}.weight", rows, (len(rows), *one), stacked=True)

    def norm(self, role: str, path: str, prefix: str = "") -> Iterator[Piece]:
        """A norm; the bias of a LayerNorm takes no offset."""
        weight, *bias = self.whole(role, path, prefix)
        yield replace(weight, offset=self.shape.architecture.norms.offset)
        yield from bias

    def whole(self, role: str, path: str, prefix: str = "") -> Iterator[Piece]:
        """All of a module."""
        rows = self.weights.shape(f"{path}.weight")[0]
        return self.linear(role, prefix, (Rows(path, 0, rows),))

    def linear(
        self, role: str, prefix: str, parts: tuple[Rows, ...], heads: int = 0, rotary: int = 0
    ) -> Iterator[Piece]:
        """Weight and bias, if there is one, of rows of modules."""
        for kind in ("weight", "bias"):
            rows = tuple(replace(part, name=f"{part.name}.{kind}") for part in parts)
            if kind == "bias" and rows[0].name not in self.weights:
                continue
            if kind == "bias" and role not in self.host.biases:
                raise UnsupportedExport(
                    f"GGUF: llama.cpp's `{self.host.name}` has no place for the bias `{rows[0].name}`. Use another"
                    " target."
                )
            dims = (sum(row.count for row in rows), *self.weights.shape(rows[0].name)[1:])
            scale = self.scales.get(role, 1.0)
            yield Piece(f"{prefix}{role}.{kind}", rows, dims, heads=heads, rotary=rotary, scale=scale)


def _follow(projections: tuple[Projection, ...], counts: tuple[int, ...], head: int) -> tuple[Rows, ...]:
    """The rows of each projection; those that share a module follow one another, or take turns head by head."""
    found: list[Rows] = []
    ends: dict[str, int] = {}
    for projection, count in zip(projections, counts, strict=True):
        start = ends.get(projection.module, 0)
        ends[projection.module] = start + count
        part = projection.start // head if projection.interleaved > 1 else 0
        found.append(Rows(projection.module, start, count, projection.interleaved, part, head))
    return tuple(found)


def _neighbours(rows: Tensor, heads: int, rotary: int) -> Tensor:
    """RoPE's pairs (i, i + rotary / 2) of every head as (2 i, 2 i + 1); rows that do not turn stay behind them."""
    per_head = rows.unflatten(0, (heads, -1))
    turning, rest = per_head[:, :rotary], per_head[:, rotary:]
    turning = turning.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)
    return torch.cat((turning, rest), dim=1).flatten(0, 1)
