"""MLX, Apple's array library, through mlx-lm."""

import json
import os
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer

from tuneprune.compress.shape import Shape
from tuneprune.errors import TunePruneError, UnsupportedExport
from tuneprune.export.probes.fresh_process import _reason as last_words
from tuneprune.export.probes.fresh_process import run_child
from tuneprune.export.reference import Reference
from tuneprune.export.targets.base import Target
from tuneprune.export.targets.mlx import openelm, run_probe
from tuneprune.export.weights import Weights

TOLERANCE = 1e-3
"""Largest difference of logits over the largest logit, in float32."""


class Mlx(Target, frozen=True):
    """A folder that mlx-lm loads: the Hugging Face one where its widths are even, else one under OpenELM's names."""

    name: ClassVar[str] = "mlx"
    title: ClassVar[str] = "a folder for mlx-lm (Apple silicon)"
    extra: ClassVar[str] = "mlx"
    runtime: ClassVar[tuple[str, ...]] = ("mlx", "mlx_lm")

    def refuse(self, shape: Shape) -> None:
        """Refuse layers of unequal widths that OpenELM's class does not compute, and windows that mlx-lm ignores."""
        config = shape.config
        window, kinds = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
        has_window = window is not None and (kinds is None or "sliding_attention" in kinds)
        if has_window and window < config.max_position_embeddings and (shape.is_ragged or kinds is None):
            raise UnsupportedExport(
                f"mlx: its class attends to the whole context, not to a sliding window of {window} tokens as this"
                f" {config.model_type} does. Use another target."
            )
        if shape.is_ragged and (why := openelm.objection(shape)) is not None:
            raise UnsupportedExport(f"mlx: {why}. Use space `width` with budget.per_layer: uniform.")

    def write(self, source: Path, folder: Path, shape: Shape) -> None:
        """Copy the folder, or write it under OpenELM's names, with the tokenizer."""
        if not shape.is_ragged:
            for file in source.iterdir():
                shutil.copy2(file, folder)
            return
        from huggingface_hub import save_torch_state_dict

        save_torch_state_dict(openelm.tensors(Weights(source), shape), folder, metadata={"format": "mlx"})
        (folder / "config.json").write_text(json.dumps(openelm.settings(shape), indent=2) + "\n", encoding="utf8")
        AutoTokenizer.from_pretrained(source, trust_remote_code=False).save_pretrained(folder)
        if (source / "generation_config.json").is_file():
            shutil.copy2(source / "generation_config.json", folder)

    def prove(self, folder: Path, reference: Reference, shape: Shape) -> dict[str, Any]:  # noqa: ARG002
        """Run the folder in mlx-lm on the CPU.

        Raises:
            TunePruneError: it does not run, or computes something else.
        """
        why = self.not_run()
        if why is not None:
            return {"status": "not run", "why": why}
        found, expected = _ask(folder, reference), reference.probe.logits
        difference = (found["logits"] - expected).abs().max().item()
        relative = difference / expected.abs().max().item()
        if not relative <= TOLERANCE:
            raise TunePruneError(
                f"mlx: mlx-lm computes other logits than the exported folder: they differ by {relative:.3g} of the"
                f" largest, of which {TOLERANCE:g} is allowed. Nothing was written; use another target."
            )
        return {
            "status": "run",
            "why": "mlx-lm computed it on the CPU, in float32",
            "engine": f"mlx {version('mlx')}, mlx-lm {version('mlx-lm')}",
            "logits": {"max_abs_diff": difference, "max_rel_diff": relative, "tolerance": TOLERANCE},
            "greedy_equal": torch.equal(found["greedy_ids"].long(), reference.greedy_ids),
        }


def _ask(folder: Path, reference: Reference) -> dict[str, Tensor]:
    with tempfile.TemporaryDirectory(prefix="tuneprune-mlx-") as scratch:
        asked, answered = Path(scratch, "probe.safetensors"), Path(scratch, "answer.safetensors")
        probe = reference.probe
        save_file({"input_ids": probe.input_ids.contiguous(), "prompt_ids": probe.prompt_ids.contiguous()}, asked)
        arguments = [str(folder), str(answered), str(asked), str(len(reference.greedy_ids))]
        child = run_child(run_probe, arguments, os.environ | {"HF_HUB_OFFLINE": "1"})
        if child.returncode != 0:
            raise TunePruneError(f"mlx: mlx-lm cannot run the written folder: {last_words(child)}")
        return load_file(answered)
