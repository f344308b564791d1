"""Scores that depend only on the dense model, computed once and kept for other budgets of the same method and seed."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tuneprune.system.storage import replacing

Tensors = dict[str, Tensor]
Drawn = TypeVar("Drawn")


class ScoreStore:
    """Scores in one file each, named by everything they depend on.

    A reused score draws as much calibration data as computing it would, so later draws are the same. Files are never
    seen half written, a damaged one is computed again, and processes that compute the same score at the same time write
    the same file.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.folder, self.identity = folder, dict(identity)
        self.reused_seconds = 0.0
        """The time that the reused scores took when they were computed."""
        self._drawn = 0

    def counted(self, calibration: Callable[[], Drawn]) -> Callable[[], Drawn]:
        """`calibration`, counting its calls: the number of batches that a score takes is stored with it."""

        def draw() -> Drawn:
            self._drawn += 1
            return calibration()

        return draw

    def get(
        self,
        statistic: str,
        options: Mapping[str, Any],
        compute: Callable[[], Mapping[str, Tensor]],
        calibration: Callable[[], object],
    ) -> Tensors:
        """The result of `compute`, read from its file if there is one.

        Args:
            options: everything `compute` depends on besides the store's identity; values that JSON can hold.
            calibration: the function that `counted` returned.
        """
        content = json.dumps([statistic, dict(options), self.identity], sort_keys=True, default=str)
        path = self.folder / f"{statistic}-{hashlib.sha256(content.encode()).hexdigest()[:16]}.safetensors"
        found = _load(path, content)
        if found is not None:
            tensors, batches, seconds = found
            for _ in range(batches):
                calibration()
            self.reused_seconds += seconds
            return tensors
        started, before = time.perf_counter(), self._drawn
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in compute().items()}
        seconds = time.perf_counter() - started
        metadata = {"depends_on": content, "batches": str(self._drawn - before), "seconds": f"{seconds:.6f}"}
        _save(path, tensors, metadata | {"sha256": _hash(tensors, metadata)})
        return tensors


def _load(path: Path, content: str) -> tuple[Tensors, int, float] | None:
    """Tensors, batches and seconds of a file; None if it is missing, damaged or depends on something else."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors: Tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
            metadata = dict(file.metadata())
        if metadata.pop("sha256") != _hash(tensors, metadata) or metadata["depends_on"] != content:
            return None
        return tensors, int(metadata["batches"]), float(metadata["seconds"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None


def _hash(tensors: Tensors, metadata: Mapping[str, str]) -> str:
    """A hash of everything in a file."""
    digest = hashlib.sha256(json.dumps(dict(metadata), sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _save(path: Path, tensors: Tensors, metadata: dict[str, str]) -> None:
    with replacing(path) as partial:  # a copy each: safetensors refuses tensors that share memory
        save_file({name: torch.clone(tensor) for name, tensor in tensors.items()}, partial, metadata)
