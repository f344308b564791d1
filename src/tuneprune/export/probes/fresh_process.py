"""Run programs in fresh Python processes, which see a model as the person who receives it does.

The programs are the files `run_*.py` next to the code that starts them; none of them imports tuneprune.
"""

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
from tuneprune.export.probes import end_with_parent


def run_fresh(program: ModuleType, folder: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Call the program with the model's folder or id, a result file to write and `arguments`; return the result.

    It runs offline, and with its own cache of remote code so that parallel runs do not interfere.

    Raises:
        TunePruneError: it failed; the message ends with its last line of output.
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
        child = run_child(program, [folder, str(result_file), *arguments], environment)
        if child.returncode != 0:
            raise TunePruneError(f"{folder}: the model does not run in a fresh process: {_reason(child)}")
        return json.loads(result_file.read_text(encoding="utf8"))


def run_child(
    program: ModuleType, arguments: Sequence[str], environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end; it also ends when this process does, however that happens.

    A terminal's Ctrl-C does not reach it: this process gets it, and then ends the program.
    """
    assert program.__file__ is not None
    # -P keeps the program's own folder off the import path, where its neighbours would be taken for libraries
    command = [sys.executable, "-P", end_with_parent.__file__, program.__file__, *arguments]
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


def _reason(child: subprocess.CompletedProcess[str]) -> str:
    """Why a program failed, as far as its output or exit status tells."""
    if child.returncode == -signal.SIGKILL:
        return (
            "something killed it, probably because memory ran out. Free memory; run and recover then go on with"
            " --resume"
        )
    return (child.stderr.strip() or f"exit status {child.returncode}").splitlines()[-1]
