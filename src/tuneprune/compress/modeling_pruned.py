"""A stock Hugging Face decoder with widths that differ from layer to layer.

`config.per_layer_config`, which transformers defines, has the layers with fewer heads or narrower MLPs, and
`config.pruned` everything else that differs from the stock class; `resize` gives a new stock model those shapes. The
file is self-contained: every checkpoint that needs it has a copy, and it imports only torch and transformers.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel


def rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE on the leading `cos.shape[-1]` dims of every head; dims j and j + half rotate together."""
    turned, rest = states[..., : cos.shape[-1]], states[..., cos.shape[-1] :]
    first, second = turned.chunk(2, dim=-1)
    turned = (turned * cos + torch.cat((-second, first), dim=-1) * sin).to(states.dtype)
    return torch.cat((turned, rest), dim=-1)


def scatter(states: Tensor, index: Tensor, width: int) -> Tensor:
    """`states` at `index` of a zero stream of `width` features."""
    return states.new_zeros(*states.shape[:-1], width).index_copy(-1, index, states)


class PrunedAttention(nn.Module):
    """Attention with its own head dims (`qk_dim`, `v_dim`), or its own row offsets in a packed projection.

    Takes over all parts of a stock attention module, so that parameter names stay the same.
    """

    config: Any
    layer_idx: int
    scaling: float
    attention_dropout: float
    rotary_index: Tensor | None
    read_index: Tensor | None
    write_index: Tensor | None

    def __init__(self, stock: nn.Module, shape: Mapping[str, int]) -> None:
        super().__init__()
        _take_over(self, stock)
        self.width = self.config.hidden_size
        self.num_heads, self.num_kv_heads = _head_counts(self.config, self.layer_idx, shape)
        self.num_key_value_groups = self.num_heads // self.num_kv_heads
        self.qk_dim, self.v_dim, self.head_dim = shape["qk_dim"], shape["v_dim"], shape["qk_dim"]
        if not hasattr(self, "sliding_window"):
            self.sliding_window = getattr(self.config, "sliding_window", None)
        _add_index(self, "rotary_index", shape.get("rotary", 0))
        _add_index(self, "read_index", shape.get("read", 0))
        _add_index(self, "write_index", shape.get("write", 0))

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,  # noqa: ANN401  (transformers' Cache)
        **kwargs: Any,  # noqa: ANN401  (passed on to the attention backend)
    ) -> tuple[Tensor, Tensor | None]:
        """Attention output on the full residual stream, and the attention weights if the backend returns them."""
        if self.read_index is not None:
            hidden_states = hidden_states.index_select(-1, self.read_index)
        queries, keys, values = self.heads(hidden_states)
        if getattr(self, "use_rope", True):  # some layers of some families have no RoPE
            queries, keys = self.turned(queries, keys, *position_embeddings)
        if past_key_values is not None:
            keys, values = past_key_values.update(keys, values, self.layer_idx)

        softcap = getattr(self, "attn_logit_softcapping", None)
        # vLLM looks for this call in the source of `forward`, under this name
        backend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        output, weights = backend(
            self,
            queries,
            keys,
            values,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            sliding_window=self.sliding_window,
            **kwargs | ({} if softcap is None else {"softcap": softcap}),
        )
        out = self.get_submodule("o_proj" if hasattr(self, "o_proj") else "dense")
        output = out(output.reshape(*hidden_states.shape[:-1], -1).contiguous())
        output = nn.functional.dropout(output, p=getattr(self, "residual_dropout", 0.0), training=self.training)
        return (output if self.write_index is None else scatter(output, self.write_index, self.width)), weights

    def turned(self, queries: Tensor, keys: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys after RoPE, with the remaining frequencies."""
        if self.rotary_index is not None:
            cos, sin = cos.index_select(-1, self.rotary_index), sin.index_select(-1, self.rotary_index)
        cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
        return rotate(queries, cos, sin), rotate(keys, cos, sin)

    def heads(self, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values as [batch, heads, length, dim], normalised if the family does so."""
        module: Any = self
        if hasattr(self, "qkv_proj"):
            sizes = (
                self.num_heads * self.qk_dim,
                self.num_kv_heads * self.qk_dim,
                self.num_kv_heads * self.v_dim,
            )
            queries, keys, values = module.qkv_proj(states).split(sizes, dim=-1)
        else:
            queries, keys, values = module.q_proj(states), module.k_proj(states), module.v_proj(states)
        has_norm = hasattr(self, "q_norm")
        joins_heads = has_norm and module.q_norm.weight.shape[-1] == queries.shape[-1]
        if joins_heads:
            queries, keys = module.q_norm(queries), module.k_norm(keys)
        queries, keys = queries.unflatten(-1, (-1, self.qk_dim)), keys.unflatten(-1, (-1, self.qk_dim))
        if has_norm and not joins_heads:
            queries, keys = module.q_norm(queries), module.k_norm(keys)
        values = values.unflatten(-1, (-1, self.v_dim))
        return queries.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2)


class PartAttention(nn.Module):
    """Replaces a stock attention module and uses its forward on a part of the residual stream."""

    read_index: Tensor | None
    write_index: Tensor | None
    config: Any

    def __init__(self, stock: nn.Module, shape: Mapping[str, int]) -> None:
        super().__init__()
        _take_over(self, stock)
        self.stock = type(stock)
        self.width = self.config.hidden_size
        _add_index(self, "read_index", shape.get("read", 0))
        _add_index(self, "write_index", shape.get("write", 0))

    def forward(self, hidden_states: Tensor, **inputs: Any) -> tuple[Tensor, Tensor | None]:  # noqa: ANN401  (as stock)
        """Attention output on the full residual stream, and the attention weights if the backend returns them."""
        if self.read_index is not None:
            hidden_states = hidden_states.index_select(-1, self.read_index)
        output, weights = self.stock.forward(self, hidden_states, **inputs)
        return (output if self.write_index is None else scatter(output, self.write_index, self.width)), weights


def _head_counts(config: Any, layer_idx: int, shape: Mapping[str, int]) -> tuple[int, int]:  # noqa: ANN401  (any config)
    """Query heads and KV heads of a layer, from `shape` if its own config could not have them."""
    own = config.per_layer_config[layer_idx]
    num_heads = shape.get("num_heads", own.num_attention_heads)
    return num_heads, shape.get("num_kv_heads", getattr(own, "num_key_value_heads", None) or num_heads)


def eager_attention(
    module: PrunedAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    softcap: float | None = None,
    **_: Any,  # noqa: ANN401  (arguments of other backends)
) -> tuple[Tensor, Tensor]:
    """Plain attention over explicit weights, returned with them."""
    key = key.repeat_interleave(module.num_key_value_groups, dim=1)
    value = value.repeat_interleave(module.num_key_value_groups, dim=1)
    weights = query @ key.transpose(2, 3) * scaling
    if softcap is not None:
        weights = torch.tanh(weights / softcap) * softcap
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = nn.functional.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class PrunedMlp(nn.Module):
    """Replaces a stock MLP and uses its forward on a part of the residual stream."""

    read_index: Tensor | None
    write_index: Tensor | None

    def __init__(self, stock: nn.Module, shape: Mapping[str, int], width: int) -> None:
        super().__init__()
        _take_over(self, stock)
        self.stock = type(stock)
        self.width = width
        _add_index(self, "read_index", shape.get("read", 0))
        _add_index(self, "write_index", shape.get("write", 0))

    def forward(self, hidden_states: Tensor) -> Tensor:
        """The output of the MLP on the full residual stream."""
        if self.read_index is not None:
            hidden_states = hidden_states.index_select(-1, self.read_index)
        output = self.stock.forward(self, hidden_states)
        return output if self.write_index is None else scatter(output, self.write_index, self.width)


class RoutedMlp(PrunedMlp):
    """A gated MLP in which every token uses the channels of `top_k` experts, chosen by a router.

    `experts` is a mask of every expert's channels; channels may belong to several. If there are many tokens, they are
    grouped, and only the channels of their experts are computed. For few tokens, gathering those weights may take
    longer than computing all channels: then, and if gradients are needed, all are computed and masked. The router
    learns through the straight-through derivative of its softmax.
    """

    tokens_worth_grouping = 32  # per expert; a choice, see docs/methods/tomoe.md
    experts: Tensor
    gate_proj: nn.Module
    up_proj: nn.Module
    gate_up_proj: nn.Module
    down_proj: nn.Module
    act_fn: nn.Module
    activation_fn: nn.Module

    def __init__(self, stock: Any, shape: Mapping[str, int], width: int) -> None:  # noqa: ANN401  (any gated MLP)
        super().__init__(stock, shape, width)
        self.top_k = shape["top_k"]
        self.router = nn.Parameter(stock.down_proj.weight.new_empty(shape["experts"], width))
        self.register_buffer("experts", torch.zeros(shape["experts"], stock.down_proj.in_features, dtype=torch.bool))

    def forward(self, hidden_states: Tensor) -> Tensor:
        """The output of the MLP on the full residual stream."""
        with torch.autocast(hidden_states.device.type, enabled=False):
            logits = nn.functional.linear(hidden_states.float(), self.router.float())
        chosen = logits.sort(dim=-1, descending=True, stable=True).indices[..., : self.top_k]  # ties go to the first
        if self.read_index is not None:
            hidden_states = hidden_states.index_select(-1, self.read_index)
        if self._may_group(chosen):
            output = self._grouped(hidden_states, chosen)
        else:
            output = self._masked(hidden_states, logits.softmax(-1), chosen)
        return output if self.write_index is None else scatter(output, self.write_index, self.width)

    def _masked(self, states: Tensor, probabilities: Tensor, chosen: Tensor) -> Tensor:
        mask = self.experts[chosen].any(-2).to(states.dtype)
        slope = probabilities - probabilities.detach()  # zero, with the derivative of the choice
        mask = mask + (slope @ self.experts.to(slope.dtype)).to(states.dtype)
        if hasattr(self, "gate_up_proj"):
            gate, up = self.gate_up_proj(states).chunk(2, dim=-1)
        else:
            gate, up = self.gate_proj(states), self.up_proj(states)
        return self.down_proj(self._activation(gate) * up * mask)

    def _grouped(self, states: Tensor, chosen: Tensor) -> Tensor:
        """One small MLP for every set of experts that some tokens chose."""
        down: Any = self.down_proj
        tokens = states.reshape(-1, states.shape[-1])
        output = tokens.new_empty(len(tokens), down.out_features)
        sets, member = chosen.reshape(len(tokens), -1).sort(-1).values.unique(dim=0, return_inverse=True)
        for index, experts in enumerate(sets):
            rows = (member == index).nonzero().squeeze(1)
            channels = self.experts[experts].any(0).nonzero().squeeze(1)
            own = tokens[rows]
            if hasattr(self, "gate_up_proj"):
                half = self.experts.shape[1]
                gate, up = (_rows_of(self.gate_up_proj, channels + start, own) for start in (0, half))
            else:
                gate, up = _rows_of(self.gate_proj, channels, own), _rows_of(self.up_proj, channels, own)
            weight = down.weight.index_select(1, channels)
            output[rows] = nn.functional.linear(self._activation(gate) * up, weight, down.bias)
        return output.view(*states.shape[:-1], -1)

    def _activation(self, gate: Tensor) -> Tensor:
        return self.activation_fn(gate) if hasattr(self, "gate_up_proj") else self.act_fn(gate)

    def _may_group(self, chosen: Tensor) -> bool:
        """Whether grouping is worth it, and possible: no adapter, quantisation, offloading or hook on the weights."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return False
        if chosen.numel() < self.tokens_worth_grouping * len(self.experts):
            return False
        linears = [module for name, module in self.named_children() if name.endswith("_proj")]
        return all(
            type(linear) is nn.Linear
            and not (linear._forward_pre_hooks or linear._forward_hooks or hasattr(linear, "_hf_hook"))
            for linear in linears
        )


def _rows_of(linear: Any, rows: Tensor, states: Tensor) -> Tensor:  # noqa: ANN401  (an nn.Linear, typed loosely)
    """Some of a linear's outputs."""
    bias = None if linear.bias is None else linear.bias[rows]
    return nn.functional.linear(states, linear.weight.index_select(0, rows), bias)


class RotatedBlock(GradientCheckpointingLayer):
    """A stock decoder layer whose attention and MLP each write to the residual stream in their own basis.

    Matrices on the two skip connections convert the stream from one basis to the next (SliceGPT, arXiv 2401.15024).
    """

    input_layernorm: nn.Module
    self_attn: nn.Module
    post_attention_layernorm: nn.Module
    mlp: nn.Module

    def __init__(self, stock: Any, width: int) -> None:  # noqa: ANN401  (any stock layer of this form)
        super().__init__()
        _take_over(self, stock)
        like = {"device": stock.input_layernorm.weight.device, "dtype": stock.input_layernorm.weight.dtype}
        self.attention_skip = nn.Linear(width, width, bias=False, **like)
        self.mlp_skip = nn.Linear(width, width, bias=False, **like)

    def forward(self, hidden_states: Tensor, **inputs: Any) -> Tensor:  # noqa: ANN401  (arguments of the attention)
        """The stream after the layer, in the basis of its next reader."""
        attended, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **inputs)
        hidden_states = self.attention_skip(hidden_states) + self.scaled(attended, "resid_attn_dropout")
        computed = self.mlp(self.post_attention_layernorm(hidden_states))
        return self.mlp_skip(hidden_states) + self.scaled(computed, "resid_mlp_dropout")

    def scaled(self, output: Tensor, dropout: str) -> Tensor:
        """The output of a sublayer as it is added to the stream: scaled, or with dropout, if the family does so."""
        output = output * getattr(self, "residual_multiplier", 1.0)
        return getattr(self, dropout)(output) if hasattr(self, dropout) else output


def _keep_experts(module: Any, number: int) -> None:  # noqa: ANN401  (a router, or packed experts)
    """Resize a part of a mixture of experts for `number` experts; a router chooses at most that many."""
    for name, weights in list(module.named_parameters(recurse=False)):
        setattr(module, name, nn.Parameter(weights.new_empty(number, *weights.shape[1:])))
    module.num_experts = number
    if hasattr(module, "top_k"):
        module.top_k = min(module.top_k, number)


def _take_over(module: nn.Module, stock: nn.Module) -> None:
    """Give `module` the children and plain attributes of `stock`."""
    for name, child in stock.named_children():
        module.add_module(name, child)
    for name, value in vars(stock).items():
        if not name.startswith("_"):
            setattr(module, name, value)


def _add_index(module: nn.Module, name: str, length: int) -> None:
    """Add a persistent index buffer (others are uninitialised after loading), or None for `length` 0."""
    module.register_buffer(name, torch.zeros(length, dtype=torch.long) if length else None)


def epsilon_name(norm: nn.Module) -> str:
    """The attribute of an RMSNorm that has its epsilon."""
    return "eps" if hasattr(norm, "eps") else "variance_epsilon"


@contextmanager
def equal_layers(config: Any) -> Iterator[None]:  # noqa: ANN401  (every family has its own config class)
    """Hide the layers' own widths in the config, which constructors of stock models do not support."""
    if not config.is_heterogeneous:
        yield
        return
    names = config.per_layer_attributes  # read from the layers, because reading from the whole config warns
    own = {index: {name: getattr(layer, name) for name in names} for index, layer in enumerate(config.per_layer_config)}
    config.per_layer_config = None
    try:
        yield
    finally:
        config.per_layer_config = own


def fit_layers(model: Any) -> None:  # noqa: ANN401  (a stock causal LM, or its inner part)
    """Give every layer of a stock model its widths in `config.per_layer_config`, in place."""
    if not model.config.is_heterogeneous:
        return
    layers = model.base_model.layers
    for index, stock in enumerate(layers):
        layer = type(stock)(model.config.per_layer_config[index], index)
        for module in layer.modules():
            if hasattr(module, "config"):  # the whole model's config, whose attention implementation may change
                module.config = model.config
        like = next(stock.parameters())
        layers[index] = layer.to(device=like.device, dtype=like.dtype)


def resize(model: PreTrainedModel, prefix: str = "") -> None:
    """Give a stock model of equal layers the shapes in its config, in place; weights are to be loaded afterwards.

    In addition to `config.per_layer_config`, `config.pruned` has `linears` {path: [inputs, outputs]}, with a third
    entry if a bias is new, `norms` {path: [size, epsilon]}, `attentions` and `mlps` {path: shape} for modules that the
    stock classes cannot run, `experts` {path: number} for routers and packed experts, and `stream` (`width`, and in
    `skips` the paths of the blocks that change its basis) if the residual stream differs from the stock model's.

    Args:
        prefix: the start of the paths to remove, for a model that is the inner part of the causal LM.
    """
    pruned: Mapping[str, Mapping[str, Any]] = model.config.pruned
    fit_layers(model)

    def locate(path: str) -> tuple[nn.Module, str, Any]:
        parent, _, name = path.removeprefix(prefix).rpartition(".")
        owner = model.get_submodule(parent)
        return owner, name, getattr(owner, name)

    for path, (inputs, outputs, *has_new_bias) in pruned["linears"].items():
        owner, name, stock = locate(path)
        like = {"device": stock.weight.device, "dtype": stock.weight.dtype}
        setattr(owner, name, nn.Linear(inputs, outputs, bias=stock.bias is not None or any(has_new_bias), **like))
    for path, (size, epsilon) in pruned["norms"].items():
        norm = locate(path)[2]
        norm.weight = nn.Parameter(norm.weight.new_ones(size))
        setattr(norm, epsilon_name(norm), epsilon)
    for path, number in pruned.get("experts", {}).items():
        _keep_experts(locate(path)[2], number)
    for path, shape in pruned["attentions"].items():
        owner, name, stock = locate(path)
        kind = PrunedAttention if "qk_dim" in shape else PartAttention
        setattr(owner, name, kind(stock, shape).to(next(stock.parameters()).device))
    for path, shape in pruned["mlps"].items():
        owner, name, stock = locate(path)
        kind = RoutedMlp if "experts" in shape else PrunedMlp
        setattr(owner, name, kind(stock, shape, model.config.hidden_size).to(next(stock.parameters()).device))
    if "stream" in pruned:
        width = pruned["stream"]["width"]
        embedding: Any = model.get_input_embeddings()
        embedding.weight = nn.Parameter(embedding.weight.new_ones(embedding.num_embeddings, width))
        embedding.embedding_dim = width
        for path in pruned["stream"]["skips"]:
            owner, name, stock = locate(path)
            setattr(owner, name, RotatedBlock(stock, width))


def resize_head(model: PreTrainedModel) -> None:
    """Let the head of a causal LM read a residual stream of the width in its config; its weight is to be loaded."""
    stream = model.config.pruned.get("stream")
    if stream is not None:
        head: Any = model.get_output_embeddings()
        head.in_features = stream["width"]
        head.weight = nn.Parameter(head.weight.new_ones(head.out_features, head.in_features))
