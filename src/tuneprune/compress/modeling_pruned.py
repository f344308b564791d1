"""A stock Hugging Face decoder with widths that differ from layer to layer.

`config.pruned` says which modules are smaller and how; `resize` gives a freshly built stock model those shapes. The
file is self-contained: it travels with every checkpoint that needs it and imports nothing but torch and transformers.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel


def rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE on the leading `cos.shape[-1]` dims of every head; dims j and j + half turn together."""
    turned, rest = states[..., : cos.shape[-1]], states[..., cos.shape[-1] :]
    first, second = turned.chunk(2, dim=-1)
    turned = turned * cos + torch.cat((-second, first), dim=-1) * sin
    return torch.cat((turned, rest), dim=-1)


def scatter(states: Tensor, index: Tensor, width: int) -> Tensor:
    """`states` at `index` of a zero stream of `width` features."""
    return states.new_zeros(*states.shape[:-1], width).index_copy(-1, index, states)


class PrunedAttention(nn.Module):
    """Attention that may have its own head dims per layer (`qk_dim`, `v_dim`) and its own part of the residual stream.

    Takes over the projections of a stock attention module, separate or packed, so that parameter names stay.
    """

    q_proj: nn.Module
    k_proj: nn.Module
    v_proj: nn.Module
    qkv_proj: nn.Module
    o_proj: nn.Module
    q_norm: nn.Module
    k_norm: nn.Module
    rotary_index: Tensor | None
    read_index: Tensor | None
    write_index: Tensor | None

    def __init__(self, stock: Any, shape: Mapping[str, int]) -> None:  # noqa: ANN401  (any stock attention)
        super().__init__()
        self.config, self.layer_idx = stock.config, stock.layer_idx
        self.scaling, self.attention_dropout, self.is_causal = stock.scaling, stock.attention_dropout, True
        self.sliding_window = getattr(stock, "sliding_window", getattr(stock.config, "sliding_window", None))
        self.num_heads, self.num_kv_heads = shape["num_heads"], shape["num_kv_heads"]
        self.num_key_value_groups = self.num_heads // self.num_kv_heads
        self.qk_dim, self.v_dim, self.head_dim = shape["qk_dim"], shape["v_dim"], shape["qk_dim"]
        for name, child in stock.named_children():
            self.add_module(name, child)
        self.width = stock.config.hidden_size
        _add_index(self, "rotary_index", shape.get("rotary", 0))
        _add_index(self, "read_index", shape.get("read", 0))
        _add_index(self, "write_index", shape.get("write", 0))

    def project(self, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, heads still flat in the last dimension."""
        if hasattr(self, "qkv_proj"):
            sizes = (
                self.num_heads * self.qk_dim,
                self.num_kv_heads * self.qk_dim,
                self.num_kv_heads * self.v_dim,
            )
            queries, keys, values = self.qkv_proj(states).split(sizes, dim=-1)
            return queries, keys, values
        return self.q_proj(states), self.k_proj(states), self.v_proj(states)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,  # noqa: ANN401  (transformers' Cache)
        **kwargs: Any,  # noqa: ANN401  (passed on to the attention backend)
    ) -> tuple[Tensor, Tensor | None]:
        """Attention output on the full residual stream, and the attention weights where the backend gives them."""
        shape = hidden_states.shape[:-1]
        if self.read_index is not None:
            hidden_states = hidden_states.index_select(-1, self.read_index)
        queries, keys, values = self.project(hidden_states)
        queries = queries.view(*shape, self.num_heads, self.qk_dim)
        keys = keys.view(*shape, self.num_kv_heads, self.qk_dim)
        if hasattr(self, "q_norm"):
            queries, keys = self.q_norm(queries), self.k_norm(keys)
        queries, keys = queries.transpose(1, 2), keys.transpose(1, 2)
        values = values.view(*shape, self.num_kv_heads, self.v_dim).transpose(1, 2)

        cos, sin = position_embeddings
        if self.rotary_index is not None:  # the surviving frequencies
            cos, sin = cos.index_select(-1, self.rotary_index), sin.index_select(-1, self.rotary_index)
        cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
        queries, keys = rotate(queries, cos, sin), rotate(keys, cos, sin)
        if past_key_values is not None:
            keys, values = past_key_values.update(keys, values, self.layer_idx)

        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        output, weights = attend(
            self,
            queries,
            keys,
            values,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            sliding_window=self.sliding_window,
            **kwargs,
        )
        output = self.o_proj(output.reshape(*shape, -1).contiguous())
        return (output if self.write_index is None else scatter(output, self.write_index, self.width)), weights


def eager_attention(
    module: PrunedAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **_: Any,  # noqa: ANN401  (what other backends take)
) -> tuple[Tensor, Tensor]:
    """Plain attention over explicit weights, returned with them."""
    key = key.repeat_interleave(module.num_key_value_groups, dim=1)
    value = value.repeat_interleave(module.num_key_value_groups, dim=1)
    weights = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = nn.functional.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class PrunedMlp(nn.Module):
    """Gated MLP with its own part of the residual stream; takes over the projections of a stock MLP."""

    gate_proj: nn.Module
    up_proj: nn.Module
    gate_up_proj: nn.Module
    down_proj: nn.Module
    act_fn: nn.Module
    activation_fn: nn.Module
    read_index: Tensor | None
    write_index: Tensor | None

    def __init__(self, stock: nn.Module, shape: Mapping[str, int], width: int) -> None:
        super().__init__()
        for name, child in stock.named_children():
            self.add_module(name, child)
        self.width = width
        _add_index(self, "read_index", shape.get("read", 0))
        _add_index(self, "write_index", shape.get("write", 0))

    def forward(self, hidden_states: Tensor) -> Tensor:
        """The MLP's contribution to the full residual stream."""
        if self.read_index is not None:
            hidden_states = hidden_states.index_select(-1, self.read_index)
        if hasattr(self, "gate_up_proj"):
            gate, up = self.gate_up_proj(hidden_states).chunk(2, dim=-1)
            output = self.down_proj(up * self.activation_fn(gate))
        else:
            output = self.down_proj(self.act_fn(self.gate_proj(hidden_states)) * self.up_proj(hidden_states))
        return output if self.write_index is None else scatter(output, self.write_index, self.width)


def _add_index(module: nn.Module, name: str, length: int) -> None:
    """A persistent index buffer (a non-persistent one would come back uninitialised), or None for `length` 0."""
    module.register_buffer(name, torch.zeros(length, dtype=torch.long) if length else None)


def resize(model: PreTrainedModel, pruned: Mapping[str, Mapping[str, Any]], prefix: str = "") -> None:
    """Give a stock model the shapes in `pruned`, in place; weights of resized modules are to be loaded afterwards.

    Args:
        pruned: `linears` {path: [inputs, outputs]}, `norms` {path: [size, epsilon]}, `attentions` and `mlps`
            {path: shape} for the blocks that the stock classes cannot run.
        prefix: what to strip from the paths, for a model that is the inner part of the causal LM.
    """

    def locate(path: str) -> tuple[nn.Module, str, Any]:
        parent, _, name = path.removeprefix(prefix).rpartition(".")
        owner = model.get_submodule(parent)
        return owner, name, getattr(owner, name)

    for path, (inputs, outputs) in pruned["linears"].items():
        owner, name, stock = locate(path)
        like = {"device": stock.weight.device, "dtype": stock.weight.dtype}
        setattr(owner, name, nn.Linear(inputs, outputs, bias=stock.bias is not None, **like))
    for path, (size, epsilon) in pruned["norms"].items():
        norm = locate(path)[2]
        norm.weight = nn.Parameter(norm.weight.new_ones(size))
        norm.variance_epsilon = epsilon
    for path, shape in pruned["attentions"].items():
        owner, name, stock = locate(path)
        setattr(owner, name, PrunedAttention(stock, shape).to(stock.o_proj.weight.device))
    for path, shape in pruned["mlps"].items():
        owner, name, stock = locate(path)
        setattr(owner, name, PrunedMlp(stock, shape, model.config.hidden_size).to(stock.down_proj.weight.device))
