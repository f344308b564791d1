"""The machine and the versions that a run uses."""

import os
import platform
import subprocess
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import Accelerator


def environment(accelerator: Accelerator) -> dict[str, Any]:
    """Versions, machine, threads and processes."""
    device = accelerator.device
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "peft", "tuneprune")},
        "platform": platform.system(),
        "cpu": _cpu_name(),
        "threads": torch.get_num_threads(),
        "processes": accelerator.num_processes,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "commit": _commit(),
    }


def free_memory(device: torch.device) -> int:
    """Free bytes on a device."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def _cpu_name() -> str:
    lines: list[str] = []
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf8").splitlines()
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{name}, {os.cpu_count()} cores"


def _commit() -> str | None:
    """The commit of the tuneprune checkout that this runs from, if any."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return found.stdout.strip() or None
