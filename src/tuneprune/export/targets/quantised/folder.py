"""A Hugging Face folder whose linear layers are quantised by a library that transformers drives."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from tuneprune.compress import shipped_code
from tuneprune.compress.shape import Shape
from tuneprune.errors import TunePruneError
from tuneprune.export.hf import CODE as CODE_ENTRY
from tuneprune.export.hf import CONFIG, weight_bytes
from tuneprune.export.probes.fresh_process import run_fresh
from tuneprune.export.reference import Reference
from tuneprune.export.targets.quantised import run_quantise, run_reload

CODE = f"{shipped_code.MODULE}.py"
FLOAT = ("lm_head", "embed_out", "attention_skip", "mlp_skip")
"""Linear layers that stay as they are: heads, and SliceGPT's matrices, which the whole residual stream passes."""
CACHE_TOLERANCE = 0.1
"""Largest difference that the cache may make to a logit, over the largest: kernels round otherwise for one token."""


def write(source: Path, folder: Path, shape: Shape, settings: Mapping[str, Any]) -> None:
    """Write the model of `source` to `folder`, quantised as `settings` of `run_quantise` say.

    A fresh process does it: quantising libraries patch what they meet, and ragged models need their modelling file,
    which is written anew, like what the config says of it, so that no code of `source` runs.
    """
    config = json.loads((source / CONFIG).read_text(encoding="utf8"))  # saving again would lose what `hf` added to it
    config.pop(CODE_ENTRY, None)
    if shape.is_ragged:
        config |= shipped_code.entries(shape.config)
    with tempfile.TemporaryDirectory(prefix="tuneprune-quantise-") as scratch:
        stage = Path(scratch)
        for file in source.iterdir():
            if file.suffix in (".json", ".safetensors") and file.name != CONFIG:
                (stage / file.name).symlink_to(file.resolve())
        (stage / CONFIG).write_text(json.dumps(config), encoding="utf8")
        if shape.is_ragged:
            (stage / CODE).write_text(shipped_code.source(shape.config), encoding="utf8")
        run_fresh(run_quantise, str(stage), [str(folder), json.dumps(dict(settings)), str(int(shape.is_ragged))])
    config["quantization_config"] = json.loads((folder / CONFIG).read_text(encoding="utf8"))["quantization_config"]
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf8")
    AutoTokenizer.from_pretrained(source, trust_remote_code=False).save_pretrained(folder)


def prove(folder: Path, reference: Reference, shape: Shape) -> dict[str, Any]:
    """What a fresh process finds in `folder`, against the float weights and answers it was made of.

    Raises:
        TunePruneError: it does not load, a weight is further from its float value than its format rounds, or the cache
            changes the answers.
    """
    probe, trust = reference.probe, str(int(shape.is_ragged))
    with tempfile.TemporaryDirectory(prefix="tuneprune-quantised-") as scratch:
        probe_file = Path(scratch, "probe.safetensors")
        probe.save(probe_file)
        arguments = [str(probe_file), str(reference.folder.resolve()), trust]
        found = run_fresh(run_reload, str(folder.resolve()), arguments)
    worst = found["weights"]["worst_error_in_steps"]
    if not worst <= 1:
        raise TunePruneError(
            f"{found['weights']['worst']}: the quantised weights are {worst:.2g} times as far from the float ones as"
            " their format rounds. Quantise to another type, and please report the model."
        )
    cached = found["cached_logits"]["max_rel_diff"]
    if not cached <= CACHE_TOLERANCE:
        raise TunePruneError(
            f"The quantised model answers differently with a key/value cache, by {cached:.2g} of the largest logit."
            " Quantise to another type, and please report the model."
        )
    sizes = {"float": weight_bytes(reference.folder), "quantised": weight_bytes(folder)}
    greedy_equal = found.pop("greedy_ids") == reference.greedy_ids.tolist()
    return {"status": "run", "why": "", **found, "greedy_equal": greedy_equal, "bytes_on_disk": sizes}
