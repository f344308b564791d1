"""ONNX, for onnxruntime and what is built on it: one graph with the key/value cache among its inputs and outputs."""

import json
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoTokenizer, GenerationConfig

from tuneprune.compress.shape import Shape
from tuneprune.errors import TunePruneError
from tuneprune.export.reference import Reference, load_exported
from tuneprune.export.targets.base import Target
from tuneprune.export.targets.onnx import graph, run_session

TOLERANCE = {"f32": 1e-3, "f16": 1e-2}
"""Largest difference of a logit, over the largest logit, with which the proof passes."""
DTYPES = {"f32": torch.float32, "f16": torch.float16}


class Onnx(Target, frozen=True):
    """One ONNX graph with a cache, its weights in a second file, the tokenizer, and `io.json` with its inputs."""

    name = "onnx"
    title = "one graph with a key/value cache for onnxruntime, uniform and ragged"
    extra = "onnx"
    packages = ("onnx", "onnxscript", "transformers.exporters")
    runtime = ("onnxruntime",)

    dtype: Literal["f32", "f16"] = "f32"

    def write(self, source: Path, folder: Path, shape: Shape) -> None:  # noqa: ARG002
        """Trace the model in memory; its weights stream to `model.onnx.data`."""
        program = graph.trace(load_exported(source, DTYPES[self.dtype]))
        graph.save(program, folder / "model.onnx")
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        tokenizer.save_pretrained(folder)
        generation = GenerationConfig.from_pretrained(source)
        generation.save_pretrained(folder)
        ends = {name: getattr(generation, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        (folder / "io.json").write_text(json.dumps(graph.interface(program) | ends, indent=1) + "\n", encoding="utf8")

    def prove(self, folder: Path, reference: Reference, shape: Shape) -> dict[str, Any]:  # noqa: ARG002
        """Run the graph in a process with onnxruntime alone: at once, through the cache, and next to a padded row."""
        import onnx

        onnx.checker.check_model(str(folder / "model.onnx"))
        why = self.not_run()
        if why:
            return {"status": "structure", "why": why}
        found = reference.probe.run(run_session, folder)
        expected = reference.greedy_ids.tolist()
        greedy = {
            "greedy_equal": found.pop("greedy_ids") == expected,
            "padded_greedy_equal": found.pop("padded_greedy_ids") == expected,
        }
        advice = "Export to another target, and please report the model."
        if self.dtype == "f16":
            advice = "The model leaves the range of half precision: use dtype=f32."
        for kind in ("logits", "cached_logits", "batched_logits"):
            largest = found[kind]["max_rel_diff"]
            if not largest <= TOLERANCE[self.dtype]:  # a difference that is not a number fails too
                raise TunePruneError(
                    f"export {self.name}: onnxruntime's {kind.replace('_', ' ')} differ by {largest:.2g} of the largest"
                    f" logit, more than {TOLERANCE[self.dtype]:g}. {advice}"
                )
        return {"status": "run", "why": "", "tolerance": TOLERANCE[self.dtype], **found, **greedy}
