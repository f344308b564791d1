"""Run files that have passed every check that needs no training and writes nothing."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

import torch
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from tuneprune import evaluate, export, families
from tuneprune.compress.shape import Shape
from tuneprune.config import RecoverConfig, RunConfig
from tuneprune.data import Data, load
from tuneprune.model.loading import load_any_config, load_config, load_tokenizer, skeleton, stored_dtype
from tuneprune.pipeline import checks
from tuneprune.pipeline.budget_costs import Costs, check_reach, costs_of, size_text
from tuneprune.pipeline.checks import Settings, in_steps, lengths_in_words
from tuneprune.structure import spaces
from tuneprune.structure.architecture import Architecture


@dataclass(frozen=True)
class Checked(Generic[Settings]):
    """A run file that has passed every check that needs no training, and what was read for them."""

    config: Settings
    """The run file, with its epochs as steps."""
    hf_config: PretrainedConfig
    architecture: Architecture
    tokenizer: PreTrainedTokenizerBase
    data: Data
    tasks: list[evaluate.LoadedTask]
    costs: Costs | None
    """None for a recovery, which has no budget."""

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the weight files."""
        return stored_dtype(self.hf_config)


def check(config: RunConfig, table: Path | None = None) -> Checked[RunConfig]:
    """Every check of a run that needs no training and writes nothing.

    Args:
        table: the measured times of this run, if it was started before.

    Raises:
        TunePruneError: what is wrong with the run file, the model, the data or the budget.
    """
    base, adapter = config.model.base, config.model.adapter
    hf_config = load_config(base, adapter)
    checks.check_lengths(config, hf_config.max_position_embeddings)
    checks.check_trackers(config.tune.trackers)
    architecture, costs = check_shape(config, hf_config, table)
    shrinks = not config.reference and costs.budget.of == "total"
    checks.check_memory(config, round(costs.space.num_parameters * (costs.budget.keep if shrinks else 1.0)))
    checked = _check_data(config, hf_config, architecture, load_tokenizer(base, hf_config, adapter), costs)
    config.method.check_steps(checked.config.tune.steps)
    return checked


def check_recovery(config: RecoverConfig) -> Checked[RecoverConfig]:
    """Every check of a recovery that needs no training and writes nothing.

    Raises:
        TunePruneError: what is wrong with the run file, the model or the data.
    """
    hf_config = load_any_config(config.model)
    checks.check_lengths(config, hf_config.max_position_embeddings)
    checks.check_trackers(config.tune.trackers)
    export.check_targets(config.export, lambda: Shape.of(hf_config))
    architecture = families.describe_config(hf_config)
    checks.check_targets(config, architecture)
    checks.check_memory(config, sum(parameter.numel() for parameter in skeleton(hf_config).parameters()))
    return _check_data(config, hf_config, architecture, load_tokenizer(config.model, hf_config), None)


def check_shape(
    config: RunConfig, hf_config: PretrainedConfig, table: Path | None = None
) -> tuple[Architecture, Costs]:
    """The checks that need no data: whether the space offers what the budget and the export ask for.

    Raises:
        TunePruneError: what is wrong with the space, the budget or the export.
    """
    architecture = families.describe_config(hf_config)
    space = spaces.build(config.space, architecture, skeleton(hf_config))
    config.method.check_family(architecture)
    checks.check_targets(config, architecture)
    checks.check_compensation(config, space)
    checks.check_counted(config)
    costs = costs_of(config.budget, hf_config, space, table)
    space, budget = costs.space, costs.budget
    check_reach(costs, config.method, hf_config)
    budget, added = config.method.constrained(budget), config.method.adds(space)
    export.check_targets(config.export, lambda: export.foresee(skeleton(hf_config), architecture, space, budget, added))
    return architecture, costs


def _check_data(
    config: Settings,
    hf_config: PretrainedConfig,
    architecture: Architecture,
    tokenizer: PreTrainedTokenizerBase,
    costs: Costs | None,
) -> Checked[Settings]:
    """Read the test items and the data, and check that the tokenizer and the model fit them."""
    tasks = evaluate.load_tasks(config.evaluate, tokenizer, config.data.system_role)
    checks.check_answers(tasks, min(config.evaluate.max_length, hf_config.max_position_embeddings))
    test = [example for task in tasks for example in task.examples]
    data = load(config.data, tokenizer, config.tune.max_length, test, sum(task.num_blank for task in tasks))
    checks.check_tokens(tokenizer, data, tasks, hf_config.vocab_size)
    return Checked(in_steps(config, data), hf_config, architecture, tokenizer, data, tasks, costs)


def preview(config: RunConfig) -> dict[str, Any]:
    """What a run would do: sizes before and after, data, and how the result will load."""
    checked = check(config)
    architecture, costs = checked.architecture, checked.costs
    assert costs is not None
    space, method = costs.space, config.method
    widths, added = method.constrained(costs.budget), method.adds(space)
    return {
        "model": f"{config.model.base} ({architecture.family}, {space.num_parameters:,} parameters)",
        "method": f"{method.title} on space {space.name}",
        "result": size_text(costs, checked.dtype),
        "loads as": export.loads_as(checked.hf_config, architecture, space, widths, added),
        "training": f"{len(checked.data.train)} documents, {lengths_in_words(config, checked.config, checked.data)}",
        "calibration": f"{len(checked.data.calibration)} documents",
        "data": checked.data.words(),
        "evaluation": ", ".join(f"{task.name} ({len(task.examples)})" for task in checked.tasks),
        "ok": True,
    }
