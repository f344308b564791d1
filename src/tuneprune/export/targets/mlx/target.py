"""MLX, Apple's array library, through mlx-lm."""

import json
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from tuneprune.compress.shape import Shape
from tuneprune.errors import TunePruneError, UnsupportedExport
from tuneprune.export.reference import Reference
from tuneprune.export.targets.base import Target, copy_tokenizer, sliding_window
from tuneprune.export.targets.mlx import openelm, run_probe
from tuneprune.export.weights import Weights

TOLERANCE = 1e-3
"""Largest difference of logits over the largest logit, in float32."""


class Mlx(Target, frozen=True):
    """A folder that mlx-lm loads: the Hugging Face one where widths are equal, else one under OpenELM's names."""

    name = "mlx"
    title = "a folder for mlx-lm (Apple silicon)"
    extra = "mlx"
    runtime = ("mlx", "mlx_lm")

    def refuse(self, shape: Shape) -> None:
        """Refuse layers of unequal widths that OpenELM's class does not compute, and windows that mlx-lm ignores."""
        config, window = shape.config, sliding_window(shape.config)
        is_ignored = shape.is_ragged or getattr(config, "layer_types", None) is None
        if window is not None and window < config.max_position_embeddings and is_ignored:
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
        copy_tokenizer(source, folder)

    def prove(self, folder: Path, reference: Reference, shape: Shape) -> dict[str, Any]:  # noqa: ARG002
        """Run the folder in mlx-lm on the CPU.

        Raises:
            TunePruneError: it does not run, or computes something else.
        """
        why = self.not_run()
        if why is not None:
            return {"status": "not run", "why": why}
        expected = reference.probe.logits
        with tempfile.TemporaryDirectory(prefix="tuneprune-mlx-") as scratch:
            logits_file = Path(scratch, "logits.safetensors")
            count = str(len(reference.greedy_ids))
            greedy_ids = reference.probe.run(run_probe, folder, str(logits_file), count)["greedy_ids"]
            difference = (load_file(logits_file)["logits"] - expected).abs().max().item()
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
            "greedy_equal": greedy_ids == reference.greedy_ids.tolist(),
        }
