"""Evaluation of a model on tasks, and of its speed."""

from tuneprune.evaluate.harness import evaluate
from tuneprune.evaluate.latency import measure_latency
from tuneprune.evaluate.lm_harness import evaluate_tasks, find_tasks
from tuneprune.evaluate.speed import measure_speed
from tuneprune.evaluate.tasks import EvaluateConfig, LoadedTask, chances, load_tasks

__all__ = [
    "EvaluateConfig",
    "LoadedTask",
    "chances",
    "evaluate",
    "evaluate_tasks",
    "find_tasks",
    "load_tasks",
    "measure_latency",
    "measure_speed",
]
