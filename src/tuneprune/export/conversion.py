"""Conversion of an exported Hugging Face folder to another format, with a proof."""

from pathlib import Path
from typing import Any

from transformers import AutoConfig

from tuneprune.compress.shape import Shape
from tuneprune.errors import TunePruneError
from tuneprune.export.export_folder import placed, sizes, write_record
from tuneprune.export.reference import Reference
from tuneprune.export.targets.base import Target


def convert(source: Path, target: Target, folder: Path, reference: Reference | None) -> dict[str, Any]:
    """Write the target's files to `folder` and prove them; the result is also written to `folder/export.json`.

    Args:
        source: an exported Hugging Face folder.
        reference: the answers of `source`; None leaves the proof out.

    Returns:
        {target, options, files: {name: bytes}, details, proof}. `details` comes from the target;
        proof is {status, why, ...}: `run` (the runtime answered: `engine`, `logits` {max_abs_diff, max_rel_diff},
        `greedy_equal`), `structure` (names and shapes were checked, as the runtime is not installed) or `not run`.

    Raises:
        UnsupportedExport: the target cannot hold the model, or its packages are missing.
        TunePruneError: the files could not be written, or do not run.
    """
    shape = Shape.of(AutoConfig.from_pretrained(source, trust_remote_code=False))
    target.refuse(shape)
    target.require()
    try:
        with placed(folder) as partial:
            details = target.write(source, partial, shape)
            files = sizes(partial)
            proof = {"status": "not run", "why": "no proof was asked for"}
            if reference is not None:
                proof = target.prove(partial, reference, shape)
            found = {
                "schema": 1,
                "target": target.name,
                "options": target.model_dump(mode="json"),
                "files": files,
                "details": dict(details or {}),
                "proof": proof,
            }
            write_record(partial, found)
    except OSError as error:
        raise TunePruneError(
            f"{folder}: the export `{target.name}` could not be written ({error}). Free space on the disk or choose"
            " another folder; what was there before is untouched."
        ) from error
    return found
