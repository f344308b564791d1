"""Tiny random models, one per family: two layers, GQA, biases and norms randomised, never downloaded."""

import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    SeedOssConfig,
    SeedOssForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
    Starcoder2Config,
    Starcoder2ForCausalLM,
)

from tuneprune.structure.edits import Route
from tuneprune.structure.plan import Plan

COMMON = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
GEMMA = {
    "head_dim": 8,
    "query_pre_attn_scalar": 16,
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "full_attention"],
}
VARIANTS = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "llama3": (LlamaConfig, LlamaForCausalLM, {"tie_word_embeddings": True, "rope_parameters": LLAMA3_ROPE}),
    "llama_mha_biased": (
        LlamaConfig,
        LlamaForCausalLM,
        {"num_key_value_heads": 4, "attention_bias": True, "mlp_bias": True},
    ),
    "mistral": (MistralConfig, MistralForCausalLM, {"sliding_window": 8}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 16}),
    "phi3": (Phi3Config, Phi3ForCausalLM, {}),
    "seed_oss": (
        SeedOssConfig,
        SeedOssForCausalLM,
        {
            "head_dim": 8,
            "attention_out_bias": True,
            "mlp_bias": True,
            "residual_dropout": 0.0,
            "attention_dropout": 0.0,
        },
    ),
    "granite": (
        GraniteConfig,
        GraniteForCausalLM,
        {
            "embedding_multiplier": 2.0,
            "attention_multiplier": 0.5,
            "residual_multiplier": 0.5,
            "logits_scaling": 4.0,
        },
    ),
    "smollm3": (
        SmolLM3Config,
        SmolLM3ForCausalLM,
        {"no_rope_layers": [1, 0], "use_sliding_window": True, "sliding_window": 8},
    ),
    "gemma2": (Gemma2Config, Gemma2ForCausalLM, GEMMA | {"attn_logit_softcapping": 5.0, "tie_word_embeddings": True}),
    "gemma3": (Gemma3TextConfig, Gemma3ForCausalLM, GEMMA),
    "olmo2": (Olmo2Config, Olmo2ForCausalLM, {}),
    "starcoder2": (Starcoder2Config, Starcoder2ForCausalLM, {"sliding_window": 8}),
    "phi": (PhiConfig, PhiForCausalLM, {"num_key_value_heads": 4}),
    "gpt_neox": (
        GPTNeoXConfig,
        GPTNeoXForCausalLM,
        {"num_key_value_heads": 4, "rope_parameters": {"rope_theta": 10000.0, "partial_rotary_factor": 0.5}},
    ),
}
EXPERTS = {
    "num_experts_per_tok": 2,
    "experts_implementation": "eager",
}  # the others have no float64
MIXTURES = {
    "mixtral": (MixtralConfig, MixtralForCausalLM, EXPERTS | {"num_local_experts": 8}),
    "qwen3_moe": (
        Qwen3MoeConfig,
        Qwen3MoeForCausalLM,
        EXPERTS | {"num_experts": 8, "moe_intermediate_size": 16, "head_dim": 8},
    ),
}
DENSE = list(VARIANTS)
"""Families with an MLP in every block; the rest has experts."""
VARIANTS |= MIXTURES
REFUSED = {
    ("phi", "head_dim"),
    ("gpt_neox", "head_dim"),
    *((variant, "residual") for variant in ("starcoder2", "phi", "gpt_neox")),
    *((variant, space) for variant in MIXTURES for space in ("width", "head_dim", "disp", "residual", "depth")),
}
"""Families that do not support a space; a law checks that they are refused."""
SPACES = ("width", "head_dim", "disp", "residual", "depth")
NO_NARROW_HEADS = {"gpt_neox"}
"""Families whose stock class derives the head size from the head count, so fewer heads need the shipped file."""
NO_ODD_STREAM = {"llama_mha_biased"}
"""Variants whose stock class refuses a stream that the head count does not divide, and that no other class hosts."""
NO_NARROW_STREAM = {"gemma2", "gemma3"}
"""Families whose stock class derives something else from the width of the residual stream."""
UNGATED = {"starcoder2", "phi", "gpt_neox", *MIXTURES}
"""Families whose layers have no gated MLP; only those can be routed."""
CASES = [(variant, space) for variant in VARIANTS for space in SPACES if (variant, space) not in REFUSED]
CASES += [(variant, "experts") for variant in MIXTURES]


def layers_for(space_name: str) -> dict:
    """Options for the number of layers: with whole layers as units, four give a budget more than one choice."""
    return {"num_hidden_layers": 4} if space_name == "depth" else {}


def tiny_model(variant: str, *, seed: int = 0, dtype: torch.dtype = torch.float64, **changes) -> PreTrainedModel:
    config_class, model_class, settings = VARIANTS[variant]
    torch.manual_seed(seed)
    settings = COMMON | settings
    for name in {"layer_types", "no_rope_layers"} & settings.keys():  # one value per layer
        settings[name] = settings[name] * (changes.get("num_hidden_layers", 2) // 2)
    model = cast_exactly(model_class(config_class(**settings | changes)), dtype).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data.uniform_(0.5, 1.5)
        elif name.endswith("bias"):
            parameter.data.normal_()
        else:
            parameter.data.mul_(5)  # larger weights than by default, so that softmax and SiLU are not nearly linear
    return model


def cast_exactly(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """The model in `dtype`, with Gemma's scale of embeddings rounded as by loading in that precision."""
    model.to(dtype)
    for module in model.modules():
        if hasattr(module, "scalar_embed_scale"):
            module.embed_scale.fill_(module.scalar_embed_scale)
    return model


def probe_ids(rows: int = 2, length: int = 12) -> torch.Tensor:
    return (torch.arange(rows * length).view(rows, length) * 7) % 60 + 3


@torch.no_grad()
def logits(model: PreTrainedModel, **inputs) -> torch.Tensor:
    return model(input_ids=probe_ids(), use_cache=False, **inputs).logits


def random_masks(space, *, seed: int = 1, uniform: bool = False) -> dict[str, torch.Tensor]:
    """Half of every group on average, at least one unit; equal counts over layers where `uniform`.

    Of whole layers, one is removed.
    """
    generator = torch.Generator().manual_seed(seed)
    masks = {}
    for group in space.groups:
        low = group.size // 2 if uniform else 1
        kept = low if uniform else int(torch.randint(low, group.size + 1, (), generator=generator))
        mask = torch.zeros(group.size)
        if group.kind == "block":
            kept = int(group.layer != seed % len(space.groups))
        mask[torch.randperm(group.size, generator=generator)[:kept]] = 1
        masks[group.name] = mask
    return masks


def routed_plan(space, architecture, *, top_k: int = 1, num_experts: int = 4, seed: int = 0) -> Plan:
    """Random experts from the MLP channels that random masks keep, and random routers."""
    draw = torch.Generator().manual_seed(seed)
    plan = Plan.from_masks(random_masks(space), space)
    edits = []
    for edit in plan.edits:
        group = space.by_name[edit.group]
        if group.kind != "mlp_channel":
            edits.append(edit)
            continue
        experts = torch.zeros(num_experts, group.size, dtype=torch.bool)
        experts[:, edit.units] = torch.rand(num_experts, len(edit.units), generator=draw) < 0.5
        experts[0, edit.units[:1]] = experts[:, edit.units[-1:]] = True  # no expert is empty
        router = torch.randn(num_experts, architecture.hidden, generator=draw).double()
        edits.append(Route(group.name, experts, {"weight": router}, top_k))
    return Plan(tuple(edits), plan.space)
