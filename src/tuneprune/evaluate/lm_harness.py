"""Tasks of EleutherAI's lm-evaluation-harness, which the library itself runs on a loaded model."""

import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tuneprune.errors import ConfigError, suggest

TaskManager: TypeAlias = Any
"""A class of the optional library; `find_tasks` makes one."""


def find_tasks(names: Sequence[str], folder: Path | None) -> TaskManager:
    """The library's index of tasks, its own and those of a folder, once it knows all of `names`.

    Args:
        names: tasks, groups or tags, or patterns of them such as `mmlu_*`.
        folder: task files (*.yaml) of the user's own; on equal names they win.

    Raises:
        ConfigError: the library is not installed, no such folder, or an unknown task.
    """
    if find_spec("lm_eval") is None:
        raise ConfigError('--tasks needs lm-evaluation-harness: pip install "tuneprune[lm-eval]".')
    if folder is not None and not folder.is_dir():
        raise ConfigError(f"--task-path: there is no folder {folder}. Name one that holds task files (*.yaml).")
    manager = import_module("lm_eval.tasks").TaskManager(include_path=str(folder) if folder else None)
    for name in names:
        if not manager.match_tasks([name]):
            where = f" nor in {folder}" if folder else "; --task-path adds a folder of your own task files"
            raise ConfigError(
                f"--tasks: no task `{name}` in lm-evaluation-harness{where}.{suggest(name, manager.all_tasks)}"
            )
    return manager


def evaluate_tasks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    names: Sequence[str],
    manager: TaskManager,
    *,
    limit: int | None = None,
    batch_size: int = 16,
) -> dict[str, dict[str, float]]:
    """Metrics by task and group, named as the library names them (`acc,none`), with standard errors.

    Raises:
        ConfigError: data of a task that cannot be read.
    """
    from datasets.exceptions import DatasetsError

    library: Any = import_module("lm_eval")
    wrapped = import_module("lm_eval.models.huggingface").HFLM(
        pretrained=model, tokenizer=tokenizer, batch_size=batch_size
    )
    try:
        with redirect_stdout(sys.stderr):  # some of its metrics print messages
            found = library.simple_evaluate(
                wrapped, tasks=manager.match_tasks(list(names)), task_manager=manager, limit=limit, log_samples=False
            )
    except (OSError, DatasetsError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"--tasks: the data of {', '.join(names)} cannot be read: {reason.rstrip('.')}. Check the task file's"
            " paths, or download the data set once where there is a network."
        ) from error
    return {
        task: {name: value for name, value in metrics.items() if "," in name and isinstance(value, int | float)}
        for task, metrics in found["results"].items()
    }
