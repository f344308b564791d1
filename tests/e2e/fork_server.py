"""Runs command lines in forked children, so that tests can start and kill many without an import for each.

Reads one JSON request a line: {"argv": [...], "env": {...}, "log": path} starts a child and answers its pid;
{"wait": pid} answers its exit status (negative: the signal that ended it). Every process of a run leaves the masks and
merged weights it computed as `rank-N.pt`, and the proof reloads in the child itself instead of a fresh interpreter.
"""

import json
import os
import sys
import traceback
from types import SimpleNamespace

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401  (import once, before the forks)

from tuneprune.cli import commands
from tuneprune.export.probes import fresh_process, run_reload
from tuneprune.pipeline import run

torch.set_num_threads(1)


def reload_here(program, arguments, environment):
    """Reload a folder in this process; run other programs in processes of their own, unchanged."""
    if program is not run_reload:
        return run_child(program, arguments, environment)
    run_reload.main(*arguments)
    return SimpleNamespace(returncode=0)


def probe_and_keep(job, model, plan):
    found = {"masks": plan.masks(job.space), "weights": dict(model.state_dict())}
    torch.save(found, job.out / f"rank-{job.accelerator.process_index}.pt")
    return take_probe(job, model, plan)


take_probe, run.masked_probe = run.masked_probe, probe_and_keep
run_child, fresh_process.run_child = fresh_process.run_child, reload_here


def child(request):
    os.environ.update(request["env"])
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.argv = ["tuneprune", *request["argv"]]
    try:
        commands.main()
    except SystemExit as leave:
        return leave.code or 0
    return 0


def answer(number):
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


def main():
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer(os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1]))
            continue
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                status = child(request)
            except BaseException:
                traceback.print_exc()  # as Python does in a process that was not forked
            finally:
                sys.stdout.flush()
                os._exit(status)
        answer(pid)


if __name__ == "__main__":  # a comparison's processes import this file as their main module
    main()
