"""The run file: its schema, reading it from YAML, and one-sentence messages for mistakes."""

from tuneprune.config.mistakes import explain
from tuneprune.config.run_file import load_recover_file, load_run_file, parse
from tuneprune.config.schema import Compensation, RecoverConfig, RunConfig

__all__ = [
    "Compensation",
    "RecoverConfig",
    "RunConfig",
    "explain",
    "load_recover_file",
    "load_run_file",
    "parse",
]
