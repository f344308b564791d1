"""Which architecture of llama.cpp computes what a model computes.

A family's own comes first. Where its tensor shapes leave no room for the model, another one with the same block hosts
it: `llama` for one number of heads that is not the family's, `deci` and `openelm` for widths that differ by layer.
"""

from dataclasses import dataclass

from tuneprune.compress.shape import Shape
from tuneprune.errors import UnsupportedExport
from tuneprune.export.targets.base import HfConfig, sliding_window
from tuneprune.export.targets.gguf import rope

ATTENTION_BIASES = frozenset({"attn_q", "attn_k", "attn_v"})
ALL_BIASES = ATTENTION_BIASES | {"attn_output", "ffn_gate", "ffn_up", "ffn_down"}
NORM_BIASES = frozenset({"attn_norm", "ffn_norm", "output_norm"})


@dataclass(frozen=True)
class Host:
    """An architecture of llama.cpp, as its loader and its graph read it.

    `interleaves`: RoPE pairs are neighbours, not halves of the head; `per_layer`: every layer may have its own widths;
    `square`: all heads together must be as wide as the residual stream. `factors`: the graph divides RoPE's
    frequencies by a tensor; `windows`: it has sliding windows. `head`: the output matrix may be left out where it is
    the embedding (`free`), must be there (`own`), or is always the embedding (`tied`).
    """

    name: str
    interleaves: bool = False
    per_layer: bool = False
    square: bool = False
    factors: bool = False
    windows: bool = False
    fuses_qkv: bool = False
    fuses_up: bool = False
    biases: frozenset[str] = frozenset()
    head: str = "free"


LLAMA = Host("llama", interleaves=True, factors=True, biases=ALL_BIASES)
DECI = Host("deci", interleaves=True, per_layer=True, factors=True, biases=ALL_BIASES)
OPENELM = Host("openelm", per_layer=True, fuses_qkv=True, head="tied")
GRANITE = Host("granite", interleaves=True, factors=True, biases=ALL_BIASES)
GEMMA2 = Host("gemma2", windows=True, head="tied")
SMOLLM3 = Host("smollm3", interleaves=True, biases=ATTENTION_BIASES)
HOSTS = {
    "llama": (LLAMA, DECI),
    "mistral": (LLAMA, DECI),
    "seed_oss": (LLAMA, DECI),
    "qwen2": (Host("qwen2", square=True, biases=ATTENTION_BIASES), LLAMA, DECI),
    "phi3": (Host("phi3", square=True, factors=True, fuses_qkv=True, fuses_up=True), LLAMA, DECI),
    "qwen3": (Host("qwen3", biases=ATTENTION_BIASES), OPENELM),
    "granite": (GRANITE, DECI),
    "smollm3": (SMOLLM3,),
    "gemma2": (GEMMA2,),
    "gemma3_text": (Host("gemma3", windows=True),),
    "olmo2": (Host("olmo2", square=True, head="own"),),
    "starcoder2": (Host("starcoder2", square=True, biases=ALL_BIASES | NORM_BIASES),),
    "phi": (Host("phi2", square=True, biases=ALL_BIASES | NORM_BIASES | {"output"}, head="own"),),
    "gpt_neox": (
        Host("gptneox", square=True, fuses_qkv=True, biases=ALL_BIASES | NORM_BIASES | {"attn_qkv"}, head="own"),
    ),
    "mixtral": (LLAMA,),
    "qwen3_moe": (Host("qwen3moe", biases=ATTENTION_BIASES),),
}
"""The architectures that may host a family, best first."""

IMPOSSIBLE = {
    "rotary pairs": "rotary pairs of each layer's own, as space `head_dim` leaves them",
    "parts of the stream": "layers that read and write parts of the residual stream, as space `disp` leaves them",
    "skip matrices": "matrices on the skip connections (SliceGPT's `variant: skip`; `variant: stock` has none)",
    "routers": "routers before parts of an MLP (ToMoE)",
}
"""Oddities that no architecture of llama.cpp computes."""


def choose(shape: Shape) -> Host:
    """The first architecture that holds the model.

    Raises:
        UnsupportedExport: none does; the message says why.
    """
    family = shape.config.model_type
    if family not in HOSTS:
        raise UnsupportedExport(
            f"GGUF: no architecture of llama.cpp is known for {family}; known are {', '.join(HOSTS)}."
        )
    for oddity, what in IMPOSSIBLE.items():
        if oddity in shape.oddities:
            raise UnsupportedExport(f"GGUF: no architecture of llama.cpp has {what}. Use space `width` or `depth`.")
    reasons = []
    for host in HOSTS[family]:
        reason = _objection(host, shape)
        if reason is None:
            return host
        reasons.append(f"`{host.name}` {reason}")
    raise UnsupportedExport(f"GGUF: no architecture of llama.cpp holds this {family}: {'; '.join(reasons)}.")


def context_length(host: Host, config: HfConfig) -> tuple[int, str | None]:
    """The longest context that the file computes as the model does, and why it is not the model's own."""
    longest, window = config.max_position_embeddings, sliding_window(config)
    if window is None or host.windows or window >= longest:
        return longest, None
    why = (
        f"llama.cpp's `{host.name}` knows no sliding window, so beyond {window} tokens it would attend to more than the"
        f" model does; the file's context is {window} instead of {longest}"
    )
    return window, why


def _objection(host: Host, shape: Shape) -> str | None:
    """Why an architecture cannot hold a model, or None."""
    widths, config = shape.widths, shape.config
    if widths["qk_dim"] != widths["v_dim"] or len(widths["qk_dim"]) > 1:
        return "wants one head size for queries, keys and values (space `head_dim` changes it; use `width`)"
    if len(widths["num_experts"]) > 1:
        return "wants one number of experts (use `budget.per_layer: uniform`)"
    if not host.per_layer and len(set(shape.layers)) > 1:
        return "wants equal widths in all layers (use `budget.per_layer: uniform`)"
    heads = max(widths["num_heads"]) * max(widths["qk_dim"])
    if host.square and heads != shape.hidden:
        return f"wants heads of {shape.hidden} features together, as wide as the residual stream, not {heads}"
    if host.head == "tied" and not shape.architecture.tied:
        return "wants tied embeddings"
    if "biases" in shape.oddities and not host.biases >= {"attn_output", "ffn_down"}:
        return "has no biases on output projections, which the method adds"
    return _special(host, config) or rope.objection(config, shape.architecture, has_factors=host.factors)


def _special(host: Host, config: HfConfig) -> str | None:
    """What a single architecture has built in."""
    if host == SMOLLM3:
        fixed = [int((index + 1) % 4 != 0) for index in range(config.num_hidden_layers)]
        if list(config.no_rope_layers) != fixed:
            return "leaves every fourth layer without RoPE, and this model others"
    if host.name == "phi2" and config.qk_layernorm:
        return "has no norms of queries and keys"
    if host.name == "qwen3moe" and not config.norm_topk_prob:
        return "scales the chosen experts' weights to a sum of one"
    activation = getattr(config, "hidden_activation", None) or config.hidden_act  # Gemma's name, and all others'
    if activation not in ACTIVATIONS[host.name]:
        return f"computes {ACTIVATIONS[host.name][0]}, not {activation}"
    return None


_GELU = ("gelu_pytorch_tanh", "gelu_new", "gelu_fast", "gelu")
ACTIVATIONS = {host.name: ("silu",) for hosts in HOSTS.values() for host in hosts} | dict.fromkeys(
    ("gemma2", "gemma3", "starcoder2", "phi2", "gptneox"), _GELU
)
"""The activations that a graph computes; its GELU is the tanh approximation, within 1e-3 of the exact one."""
