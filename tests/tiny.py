"""Tiny random models, one per family: two layers, GQA, biases and norms randomised, never downloaded."""

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

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
}
SPACES = ("width", "head_dim", "disp")


def tiny_model(variant: str, *, seed: int = 0, dtype: torch.dtype = torch.float64, **changes) -> PreTrainedModel:
    config_class, model_class, settings = VARIANTS[variant]
    torch.manual_seed(seed)
    model = model_class(config_class(**COMMON | settings | changes)).to(dtype).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data.uniform_(0.5, 1.5)
        elif name.endswith("bias"):
            parameter.data.normal_()
        else:
            parameter.data.mul_(5)  # default init is nearly linear; larger weights make softmax and SiLU bend
    return model


def probe_ids(rows: int = 2, length: int = 12) -> torch.Tensor:
    return (torch.arange(rows * length).view(rows, length) * 7) % 60 + 3


@torch.no_grad()
def logits(model: PreTrainedModel, **inputs) -> torch.Tensor:
    return model(input_ids=probe_ids(), use_cache=False, **inputs).logits


def random_masks(space, *, seed: int = 1, uniform: bool = False) -> dict[str, torch.Tensor]:
    """Half of every group on average, at least one unit; equal counts over layers where `uniform`."""
    generator = torch.Generator().manual_seed(seed)
    masks = {}
    for group in space.groups:
        low = group.size // 2 if uniform else 1
        kept = low if uniform else int(torch.randint(low, group.size + 1, (), generator=generator))
        mask = torch.zeros(group.size)
        mask[torch.randperm(group.size, generator=generator)[:kept]] = 1
        masks[group.name] = mask
    return masks
