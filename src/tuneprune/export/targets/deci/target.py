"""DeciLM: layers of unequal widths in vLLM's own kernels."""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field
from torch import Tensor

from tuneprune.compress.shape import LayerShape, Shape
from tuneprune.errors import TunePruneError, UnsupportedExport
from tuneprune.export.reference import Reference
from tuneprune.export.targets.base import Target, copy_tokenizer, sliding_window
from tuneprune.export.targets.deci import configuration_deci
from tuneprune.export.weights import Weights
from tuneprune.families.base import head_width, rotary_width
from tuneprune.structure.architecture import Block

FAMILIES = ("llama", "mistral", "qwen2", "seed_oss", "phi3")
"""Families of LLaMA's block: separate projections (or separable ones), no norms of queries and keys."""
DROPPED = ("auto_map", "architectures", "pruned", "per_layer_config", "allow_global_per_layer_attribute_access")


class Deci(Target, frozen=True):
    """A folder for vLLM's native `DeciLMForCausalLM`; its only code is the config class."""

    name = "deci"
    title = "a folder for vLLM's native class of layers with unequal widths"

    tp: int = Field(default=1, ge=1, description="GPUs that every layer's widths must divide among (tensor parallel)")

    def refuse(self, shape: Shape) -> None:
        """Refuse what the class does not compute, and widths that `tp` GPUs cannot share."""
        why = _objection(shape)
        if why is not None:
            raise UnsupportedExport(
                f"deci: {why}. vLLM runs the Hugging Face folder itself by its transformers backend."
            )
        for index, layer in enumerate(shape.layers):
            if not _divides(layer, self.tp):
                raise UnsupportedExport(
                    f"deci:tp={self.tp}: layer {index} has {layer.num_heads} query heads, {layer.num_kv_heads} KV heads"
                    f" and {layer.mlp_width} channels, which {self.tp} GPUs cannot share. Set budget.multiple_of, or"
                    " lower tp."
                )

    def write(self, source: Path, folder: Path, shape: Shape) -> None:
        """Write weights with projections apart, the config and its class, and the tokenizer."""
        from huggingface_hub import save_torch_state_dict

        tensors = dict(_tensors(Weights(source), shape))
        save_torch_state_dict(tensors, folder, metadata={"format": "pt"})
        config = json.loads((source / "config.json").read_text(encoding="utf8"))
        settings = {name: value for name, value in config.items() if name not in DROPPED}
        settings |= _settings(shape, tensors)
        (folder / "config.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf8")
        shutil.copy2(configuration_deci.__file__, folder)
        copy_tokenizer(source, folder)

    def prove(self, folder: Path, reference: Reference, shape: Shape) -> dict[str, Any]:  # noqa: ARG002
        """Compare names and shapes with those that vLLM's class derives from the config; vLLM is not needed.

        Raises:
            TunePruneError: they differ.
        """
        weights = Weights(folder)
        expected = _expected(shape, weights)
        wrong = [name for name, dims in expected.items() if name not in weights or weights.shape(name) != dims]
        if wrong:
            raise TunePruneError(f"deci: {len(wrong)} tensors differ from those of DeciLM, such as {wrong[0]}.")
        return {
            "status": "structure",
            "why": "vLLM runs in an environment of its own; benchmarks/vllm_check.py runs this format there",
            "tensors": len(expected),
        }


def _objection(shape: Shape) -> str | None:
    config, widths = shape.config, shape.widths
    rope: Mapping[str, Any] = getattr(config, "rope_parameters", None) or {}
    if config.model_type not in FAMILIES:
        return f"DeciLM is the block of {', '.join(FAMILIES)}, not that of {config.model_type}"
    if shape.oddities or widths["qk_dim"] != widths["v_dim"] or len(widths["qk_dim"]) > 1:
        return f"DeciLM has no layers with {', '.join(sorted(shape.oddities)) or 'head dims of their own'}"
    if len(widths["num_heads"]) > 1:
        return "DeciLM has one number of query heads for all layers, and here it differs"
    if "short_factor" in rope or rotary_width(config) < head_width(config):
        return "DeciLM turns whole heads by one list of frequencies"
    if sliding_window(config) is not None:
        return "DeciLM knows no sliding window"
    return None


def _divides(layer: LayerShape, tp: int) -> bool:
    """Whether GPUs share a layer evenly; KV heads may also be copied to several."""
    kv_is_shared = layer.num_kv_heads % tp == 0 or tp % layer.num_kv_heads == 0
    return layer.num_heads % tp == 0 and kv_is_shared and layer.mlp_width % tp == 0


def _settings(shape: Shape, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Entries of a DeciLM's config that the model's own config lacks or has with other values."""
    blocks = [
        {
            "attention": {"no_op": False, "n_heads_in_group": layer.num_heads // layer.num_kv_heads},
            "ffn": {"no_op": False, "intermediate_size": layer.mlp_width},
        }
        for layer in shape.layers
    ]
    attention = f"{shape.architecture.blocks[0].path}.self_attn"
    return {
        "architectures": ["DeciLMForCausalLM"],
        "model_type": configuration_deci.DeciConfig.model_type,
        "auto_map": {
            "AutoConfig": f"{Path(configuration_deci.__file__).stem}.{configuration_deci.DeciConfig.__name__}"
        },
        "block_configs": blocks,
        "head_dim": shape.layers[0].qk_dim,
        "num_attention_heads": shape.layers[0].num_heads,
        "num_key_value_heads": max(layer.num_kv_heads for layer in shape.layers),
        "intermediate_size": max(layer.mlp_width for layer in shape.layers),
        "sliding_window": None,
        "attention_bias": f"{attention}.o_proj.bias" in tensors,
        "qkv_bias": f"{attention}.q_proj.bias" in tensors,
    }


def _rows(block: Block, layer: LayerShape) -> Iterator[tuple[str, str, int, int]]:
    """DeciLM's name of every projection, the module that holds it, its first row there and its number of rows."""
    counts = (layer.num_heads * layer.qk_dim, *[layer.num_kv_heads * layer.qk_dim] * 2, *[layer.mlp_width] * 2)
    names = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
    ends: dict[str, int] = {}
    for name, projection, count in zip(names, block.projections, counts, strict=True):
        start = ends.get(projection.module, 0)
        ends[projection.module] = start + count
        yield name, projection.module, start, count


def _tensors(weights: Weights, shape: Shape) -> Iterator[tuple[str, Tensor]]:
    """All weights by their names in a DeciLM, which are LLaMA's."""
    outer = shape.architecture
    for module in (outer.embed, outer.final_norm, *(() if outer.tied else (outer.head,))):
        yield f"{module}.weight", weights[f"{module}.weight"]
    for block, layer in zip(outer.blocks, shape.layers, strict=True):
        for name, module, start, count in _rows(block, layer):
            for kind in ("weight", "bias"):
                if f"{module}.{kind}" in weights:
                    rows = weights[f"{module}.{kind}"][start : start + count]
                    yield f"{block.path}.{name}.{kind}", rows.clone()  # views of one tensor cannot be saved apart
        for module in (block.attention.out, block.mlp.down, block.attention_norm, block.mlp_norm):
            for kind in ("weight", "bias"):
                if f"{module}.{kind}" in weights:
                    yield f"{module}.{kind}", weights[f"{module}.{kind}"]


def _expected(shape: Shape, weights: Weights) -> dict[str, tuple[int, ...]]:
    """Names and dims of the matrices of a DeciLM of this shape."""
    hidden, head = shape.hidden, shape.layers[0].qk_dim
    dims: dict[str, tuple[int, ...]] = {f"{shape.architecture.embed}.weight": (shape.config.vocab_size, hidden)}
    for index, layer in enumerate(shape.layers):
        queries, keys = layer.num_heads * head, layer.num_kv_heads * head
        path = f"model.layers.{index}"
        for name, rows in (("q", queries), ("k", keys), ("v", keys)):
            dims[f"{path}.self_attn.{name}_proj.weight"] = (rows, hidden)
            if f"{path}.self_attn.{name}_proj.bias" in weights:
                dims[f"{path}.self_attn.{name}_proj.bias"] = (rows,)
        dims[f"{path}.self_attn.o_proj.weight"] = (hidden, queries)
        dims |= {f"{path}.mlp.{name}_proj.weight": (layer.mlp_width, hidden) for name in ("gate", "up")}
        dims[f"{path}.mlp.down_proj.weight"] = (hidden, layer.mlp_width)
    return dims
