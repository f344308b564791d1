"""Runs the programs of proofs in forked children of one process that has already imported what they need.

Importing torch, transformers and a quantising library takes longer than the rest of a proof, and the tests run hundreds
of proofs. Reads one JSON request per line, {"program": path, "argv": [...], "env": {...}, "errors": path}, and answers
the exit status of a child whose standard error is written to that file.
"""

import json
import os
import runpy
import signal
import sys
import traceback
from importlib import import_module
from importlib.util import find_spec

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, dynamic_module_utils  # noqa: F401  (import once)

PATIENCE = 300
"""Seconds after which a child that hangs is ended by a signal."""
torch.set_num_threads(1)
for package in ("onnxruntime", "bitsandbytes", "torchao.quantization"):
    if find_spec(package.partition(".")[0]):
        import_module(package)


def child(request):
    os.environ.update(request["env"])
    cache = os.environ.get("HF_MODULES_CACHE", dynamic_module_utils.HF_MODULES_CACHE)
    dynamic_module_utils.HF_MODULES_CACHE = cache  # read when transformers was imported
    sys.argv = [request["program"], *request["argv"]]
    try:
        runpy.run_path(request["program"], run_name="__main__")
    except SystemExit as leave:
        return leave.code or 0
    return 0


def answer(request):
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    status = 1
    signal.alarm(PATIENCE)
    errors = os.open(request["errors"], os.O_WRONLY | os.O_CREAT)
    os.dup2(errors, 1)
    os.dup2(errors, 2)
    try:
        status = child(request)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    for line in sys.stdin:
        sys.__stdout__.write(f"{answer(json.loads(line))}\n")
        sys.__stdout__.flush()
