"""Speed of the dense and the pruned model, measured in turns, and their memory, measured in fresh processes."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from tuneprune import evaluate, export
from tuneprune.compress.shape import Shape
from tuneprune.compress.twins import Twin, uniform_twin
from tuneprune.errors import TunePruneError
from tuneprune.model.gguf_files import plain_folder
from tuneprune.model.loading import cast_weights
from tuneprune.pipeline.job import RunJob
from tuneprune.report.numbers import bytes_text
from tuneprune.report.run.costs import SpeedRecord, speed_sentence
from tuneprune.structure import spaces
from tuneprune.structure.plan import Plan
from tuneprune.structure.space import Kind
from tuneprune.system.environment import free_memory

BATCH_SIZES = (1, 8)
ALIGNMENTS = (128, 64)
"""The widths of the aligned twin are multiples of the first of these that its size allows."""
KERNEL_STEP = 8
"""Matrix kernels for 16-bit numbers are fast if both sides of a matrix are multiples of this."""


def measure_costs(job: RunJob, plan: Plan, small: PreTrainedModel) -> dict[str, Any]:
    """`speed` and `memory` as the proof has them; empty if the run file does not ask for them.

    Both models compute in the dense one's precision: float32 on a CPU, the stored one on a GPU.
    """
    if not job.config.speed:
        return {}
    job.progress.stage("measure speed")
    dense = job.fresh_model()
    speed = measure_speed(job, plan, dense, cast_weights(small, dense.dtype))
    dtype = dense.dtype
    del dense
    job.progress.stage("measure memory")
    return {"speed": speed, "memory": measure_memory(job, small, speed, dtype)}


def measure_speed(job: RunJob, plan: Plan, dense: PreTrainedModel, small: PreTrainedModel) -> dict[str, Any]:
    """Speed of both models and, for a ragged one, of stock models of its size, all in the same rounds."""
    twins = twins_of(job, plan, dense, small)
    needed = sum(twin.parameters for twin, _ in twins.values()) * small.dtype.itemsize
    missing = None
    if needed > free_memory(small.device):
        missing = f"they take {bytes_text(needed)} of memory, more than is free."
        twins = {}
    elif Shape.of(small.config).is_ragged and not twins:
        missing = f"no stock class of {job.architecture.family} has even widths of this size."
    models = {name: twin.build(small.device, small.dtype) for name, (twin, _) in twins.items()}
    shapes = [module.weight.shape for module in small.modules() if isinstance(module, nn.Linear)]
    found: dict[str, Any] = {
        **evaluate.measure_speed({"dense": dense, "pruned": small, **models}, batch_sizes=batch_sizes(job)),
        "twins": {
            name: {"parameters": twin.parameters, "widths": twin.widths, "multiple_of": step}
            for name, (twin, step) in twins.items()
        },
        "twins_missing": missing,
        "matrices": len(shapes),
        "odd_matrices": sum(any(side % KERNEL_STEP for side in shape) for shape in shapes),
    }
    return found | {"verdict": speed_sentence(SpeedRecord.model_validate(found))}


def batch_sizes(job: RunJob) -> tuple[int, ...]:
    """Batch sizes that every run is measured at; a latency budget adds its own."""
    table = job.costs.table
    return BATCH_SIZES if table is None or table.batch_size in BATCH_SIZES else (*BATCH_SIZES, table.batch_size)


def twins_of(job: RunJob, plan: Plan, dense: PreTrainedModel, small: PreTrainedModel) -> dict[str, tuple[Twin, int]]:
    """Stock models of the size of a ragged one, and what their widths are multiples of; empty for a stock one."""
    if not Shape.of(small.config).is_ragged:
        return {}
    even = job.space if job.space.name in ("width", "experts") else spaces.build("width", job.architecture, dense)
    target = sum(parameter.numel() for parameter in small.parameters())
    shares = kept_shares(job, plan)
    twins: dict[str, tuple[Twin, int]] = {}
    for name, steps in (("uniform", (1,)), ("aligned", ALIGNMENTS)):
        for step in steps:
            twin = uniform_twin(dense.config, job.architecture, even, target, shares, step)
            if twin is not None and all(twin.widths != other.widths for other, _ in twins.values()):
                twins[name] = (twin, step)
                break
    return twins


def kept_shares(job: RunJob, plan: Plan) -> dict[Kind, float]:
    """The share that a plan keeps of the units of each kind, over all layers."""
    widths = plan.widths(job.space)
    sizes: dict[Kind, int] = {}
    kept: dict[Kind, int] = {}
    for group in job.space.groups:
        sizes[group.kind] = sizes.get(group.kind, 0) + group.size
        kept[group.kind] = kept.get(group.kind, 0) + widths[group.name]
    return {kind: kept[kind] / size for kind, size in sizes.items()}


def measure_memory(job: RunJob, small: PreTrainedModel, speed: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """Memory of both models, each in a fresh process of its own.

    If a model does not run there, the reason is recorded instead, as an error at this point would lose the whole run.
    """
    base = Path(plain_folder(job.config.model.base))
    models = {
        "dense": (str(base.resolve()) if base.is_dir() else str(base), False),
        "pruned": (str((job.out / "model").resolve()), Shape.of(small.config).is_ragged),
    }
    found: dict[str, Any] = {"device": speed["device"], "dtype": str(dtype).removeprefix("torch.")}
    lengths = {name: speed[name] for name in ("prompt_tokens", "new_tokens")}
    for name, (model, code) in models.items():
        options = {"needs_remote_code": code, "device": small.device, "dtype": dtype, **lengths}
        try:
            found[name] = export.memory_use(model, batch_sizes=BATCH_SIZES, **options)
        except TunePruneError as error:
            found["problem"] = str(error).replace(model, f"the {name} folder")  # cards must not contain paths
    return found | lengths
