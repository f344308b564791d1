"""bitsandbytes and torchao: int8 or NF4 weights in a Hugging Face folder."""

import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from transformers import AutoTokenizer

from tuneprune.compress import shipped_code
from tuneprune.compress.shape import Shape
from tuneprune.errors import TunePruneError, UnsupportedExport
from tuneprune.export import hf
from tuneprune.export.probes.fresh_process import run_fresh
from tuneprune.export.reference import Reference
from tuneprune.export.targets.base import Target
from tuneprune.export.targets.quantised import run_quantise, run_reload

NF4_INPUTS, NF4_OUTPUTS = 64, 32
"""Multiples that NF4 needs: blocks of a row that share a scale, and the rows that the CPU kernel packs."""
FLOAT = ("lm_head", "embed_out", "attention_skip", "mlp_skip")
"""Linear layers that are not quantised: heads, and SliceGPT's matrices, which the whole residual stream passes."""
CACHE_TOLERANCE = 0.1
"""Largest change of a logit by the cache, over the largest logit: kernels round differently for a single token."""


class Quantised(Target, frozen=True):
    """A Hugging Face folder whose linear layers are quantised by a library that transformers calls."""

    extra = "quantise"
    options: ClassVar[Mapping[str, Mapping[str, Any]]]
    """Options of the library's configuration, by type."""

    type: str = "int8"

    def refuse(self, shape: Shape) -> None:
        """Refuse mixtures of experts; int8 takes any width."""
        if any(layer.num_experts for layer in shape.layers):
            raise UnsupportedExport(
                f"{self.name} quantises linear layers, but a mixture keeps its experts in packed tensors, which would"
                " stay as large as they are. Export it to another target, or keep the Hugging Face folder in bf16."
            )

    def write(self, source: Path, folder: Path, shape: Shape) -> None:
        """Quantise the model while it loads, and save it.

        A fresh process does it, because quantising libraries patch classes. Ragged models need their modelling file: it
        and its entries in the config are written again, so that no code of `source` runs.
        """
        config = json.loads((source / hf.CONFIG).read_text(encoding="utf8"))  # saving again would lose some entries
        config.pop(hf.CODE, None)
        if shape.is_ragged:
            config |= shipped_code.entries(shape.config)
        settings = {"library": self.packages[0], "options": self.options[self.type], "keep": FLOAT}
        with tempfile.TemporaryDirectory(prefix="tuneprune-quantise-") as scratch:
            stage = Path(scratch)
            for file in source.iterdir():
                if file.suffix in (".json", ".safetensors") and file.name != hf.CONFIG:
                    (stage / file.name).symlink_to(file.resolve())
            (stage / hf.CONFIG).write_text(json.dumps(config), encoding="utf8")
            if shape.is_ragged:
                code = shipped_code.source(shape.config)
                (stage / f"{shipped_code.MODULE}.py").write_text(code, encoding="utf8")
            run_fresh(run_quantise, str(stage), [str(folder), json.dumps(settings), str(int(shape.is_ragged))])
        saved = json.loads((folder / hf.CONFIG).read_text(encoding="utf8"))
        config["quantization_config"] = saved["quantization_config"]
        (folder / hf.CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf8")
        AutoTokenizer.from_pretrained(source, trust_remote_code=False).save_pretrained(folder)

    def prove(self, folder: Path, reference: Reference, shape: Shape) -> dict[str, Any]:
        """Load it in a fresh process and compare it with the float weights and answers that it was made from.

        Raises:
            TunePruneError: it does not load, a weight is further from its float value than its format rounds, or the
                cache changes the answers.
        """
        arguments = (str(reference.folder.resolve()), str(int(shape.is_ragged)))
        found = reference.probe.run(run_reload, folder, *arguments)
        weights = found["weights"]
        if not (error := weights["worst_error_in_steps"]) <= 1:
            raise TunePruneError(
                f"{weights['worst']}: the quantised weights are {error:.2g} times as far from the float ones as"
                " their format rounds. Quantise to another type, and please report the model."
            )
        cached = found["cached_logits"]["max_rel_diff"]
        if not cached <= CACHE_TOLERANCE:
            raise TunePruneError(
                f"The quantised model answers differently with a key/value cache, by {cached:.2g} of the largest logit."
                " Quantise to another type, and please report the model."
            )
        sizes = {"float": hf.weight_bytes(reference.folder), "quantised": hf.weight_bytes(folder)}
        greedy_equal = found.pop("greedy_ids") == reference.greedy_ids.tolist()
        return {"status": "run", "why": "", **found, "greedy_equal": greedy_equal, "bytes_on_disk": sizes}


class Bnb(Quantised, frozen=True):
    """Linear layers in 8 or 4 bits, which transformers loads with bitsandbytes on GPUs and CPUs."""

    name = "bnb"
    title = "a Hugging Face folder in int8 or NF4 (bitsandbytes)"
    packages = runtime = ("bitsandbytes",)
    options: ClassVar = {"int8": {"load_in_8bit": True}, "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}}

    type: Literal["int8", "nf4"] = "int8"

    def refuse(self, shape: Shape) -> None:
        """Refuse widths that NF4's blocks do not divide."""
        super().refuse(shape)
        steps = {True: NF4_INPUTS, False: NF4_OUTPUTS}
        misfits = (f"{name} {width}" for name, width, is_input in _widths(shape) if width % steps[is_input])
        if self.type == "nf4" and (misfit := next(misfits, None)):
            raise UnsupportedExport(
                f"bnb:type=nf4 takes linear layers with inputs in multiples of {NF4_INPUTS} and outputs in multiples of"
                f" {NF4_OUTPUTS}, but this model has {misfit}. Prune with budget.multiple_of: {NF4_INPUTS} where"
                " that is a width of a pruned group, or export bnb:type=int8, which takes any width."
            )


class TorchAo(Quantised, frozen=True):
    """Linear layers in 8 bits, which transformers loads with torchao and torch.compile speeds up.

    None of torchao's 4-bit formats is both packed and for CPUs, so none could be proved here: use `bnb:type=nf4`.
    """

    name = "torchao"
    title = "a Hugging Face folder in int8, with or without int8 activations (torchao)"
    packages = runtime = ("torchao",)
    options: ClassVar = {
        "int8": {"config": "Int8WeightOnlyConfig"},
        "int8_dynamic": {"config": "Int8DynamicActivationInt8WeightConfig"},
    }

    type: Literal["int8", "int8_dynamic"] = "int8"


def _widths(shape: Shape) -> Iterator[tuple[str, int, bool]]:
    """Name and size of each width of a linear layer, and whether it is an input of the layer or an output."""
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
