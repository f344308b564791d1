"""Programs in fresh Python processes, which see a model as whoever receives it does."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from tuneprune.errors import TunePruneError
from tuneprune.export.probes import tied


def run_fresh(program: ModuleType, folder: str, arguments: Sequence[str]) -> dict[str, Any]:
    """What the program, called with the model's folder or id, a result file to write and `arguments`, wrote there.

    It runs offline, and with a code cache of its own so that parallel runs do not meet.

    Raises:
        TunePruneError: it failed; with its last words.
    """
    with tempfile.TemporaryDirectory(prefix="tuneprune-fresh-") as scratch:
        result_file = Path(scratch, "result.json")
        environment = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
            "HF_MODULES_CACHE": str(Path(scratch, "modules")),
            "TOKENIZERS_PARALLELISM": "false",
        }
        child = run_tied(program, [folder, str(result_file), *arguments], environment)
        if child.returncode != 0:
            raise TunePruneError(f"{folder}: the model does not run in a fresh process: {last_words(child)}")
        return json.loads(result_file.read_text(encoding="utf8"))


def last_words(child: subprocess.CompletedProcess[str]) -> str:
    """Why a program failed, as far as it said so or its exit status tells."""
    if child.returncode == -signal.SIGKILL:
        return (
            "something killed it, probably because memory ran out. Free memory; run and recover then go on with"
            " --resume"
        )
    return (child.stderr.strip() or f"exit status {child.returncode}").splitlines()[-1]


def run_tied(
    program: ModuleType, arguments: Sequence[str], environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end; it ends with this process too, however that ends.

    A terminal's Ctrl-C does not reach it: it is for this process, which then ends the program.
    """
    assert program.__file__ is not None
    # -P keeps the program's own folder off the import path, where its neighbours would pass for libraries
    command = [sys.executable, "-P", tied.__file__, program.__file__, *arguments]
    reader, writer = os.pipe()
    try:
        return subprocess.run(
            command,
            env=environment,
            stdin=reader,
            capture_output=True,
            text=True,
            check=False,
            start_new_session=True,
        )
    finally:
        os.close(reader)
        os.close(writer)
