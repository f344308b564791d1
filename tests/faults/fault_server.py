"""The fork server of the end-to-end tests, with children that can be killed at one of their file operations.

`TUNEPRUNE_FAULT` says what a child does. {"under": folder, "trace": file} writes a line of JSON for every operation
under the folder. {"under", "process", "event": number, "how": "before" | "after" | "torn"} kills the process with that
name (`MainProcess`, or a cell of a comparison) at the operation with that number; "torn" kills it in the middle, which
leaves half of a file, or of its first write. `TUNEPRUNE_LOADED` names a file for the loaded state: `exit_when_loaded`.
"""

import builtins
import hashlib
import io
import json
import multiprocessing
import os
import signal
from pathlib import Path

import safetensors.torch
import torch
from e2e import fork_server

from tuneprune.pipeline import run
from tuneprune.train import Tuner

LOADED = 77


def die():
    os.kill(os.getpid(), signal.SIGKILL)


class Faults:
    """Counts the file operations under a folder, and kills the process at one of them."""

    def __init__(self, under, process="MainProcess", trace=None, event=None, how=None):
        self.under, self.process, self.trace, self.event, self.how = under, process, trace, event, how
        self.count = 0

    def aimed(self, kind, path):
        """How to die at this operation; None to continue."""
        name = multiprocessing.current_process().name
        if not str(path).startswith(self.under) or (self.trace is None and name != self.process):
            return None
        self.count += 1
        if self.trace is not None:
            line = {"process": name, "event": self.count, "kind": kind, "path": str(path)[len(self.under) :]}
            handle = os.open(self.trace, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.write(handle, (json.dumps(line) + "\n").encode())
            os.close(handle)
        return self.how if self.count == self.event else None

    def wrap(self, module, name, kind, path_of, tear=None):
        """Count `module.name` as an operation; without `tear` it cannot be torn."""
        original = getattr(module, name)

        def operation(*arguments, **options):
            how = self.aimed(kind, path_of(*arguments, **options))
            if how == "before":
                die()
            elif how == "torn" and tear is not None:
                tear(original, *arguments, **options)
                die()
            found = original(*arguments, **options)
            if how is not None:
                die()
            return found

        setattr(module, name, operation)

    def wrap_open(self, module):
        original = module.open

        def opened(file, mode="r", *arguments, **options):
            writes = any(letter in mode for letter in "wax+") and not isinstance(file, int)
            how = self.aimed("open", os.path.abspath(file)) if writes else None
            if how == "before":
                die()
            stream = original(file, mode, *arguments, **options)
            if how == "after":
                die()
            return Torn(stream) if how == "torn" else stream

        module.open = opened

    def install(self):
        self.wrap_open(io)
        self.wrap_open(builtins)
        self.wrap(os, "fsync", "fsync", path_of_handle, halve_handle)
        self.wrap(safetensors.torch, "serialize_file", "save_file", lambda _, path, *__, **___: path, halve_file)
        for name in ("rename", "replace"):
            self.wrap(os, name, "rename", lambda source, *_, **__: source)
        for name in ("unlink", "remove", "rmdir"):
            self.wrap(os, name, "delete", path_in)


class Torn:
    """A stream that takes half of the first write, then kills the process."""

    def __init__(self, stream):
        self.stream = stream

    def write(self, content):
        self.stream.write(content[: len(content) // 2])
        self.stream.flush()
        die()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stream.close()

    def __getattr__(self, name):
        return getattr(self.stream, name)


def path_of_handle(handle):
    return os.readlink(f"/proc/self/fd/{handle}")


def path_in(path, *, dir_fd=None):
    return os.path.join(path_of_handle(dir_fd), path) if dir_fd is not None else os.path.abspath(path)


def halve_handle(_, handle):
    path = path_of_handle(handle)
    if os.path.isfile(path):
        os.truncate(path, os.path.getsize(path) // 2)


def halve_file(original, content, path, *arguments, **options):
    original(content, path, *arguments, **options)
    os.truncate(path, os.path.getsize(path) // 2)


def digest(tuner, search):
    """A hash of everything that the next steps depend on."""
    found = hashlib.sha256()
    trainable = {name: value for name, value in tuner.model.named_parameters() if value.requires_grad}
    streams = [tuner.train_stream.state_dict(), tuner.calibration_stream.state_dict()]
    add(found, [trainable, tuner.optimizer.state_dict(), search.state_dict(), streams, torch.get_rng_state()])
    return found.hexdigest()


def add(found, value):
    if isinstance(value, torch.Tensor):
        found.update(f"{value.dtype} {tuple(value.shape)}".encode())
        found.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(value, dict):
        for key, item in value.items():
            found.update(repr(key).encode())
            add(found, item)
    elif isinstance(value, list | tuple):
        for item in value:
            add(found, item)
    else:
        found.update(repr(value).encode())


def exit_when_loaded(path):
    """End before the first step, with a digest of the state that it would start from."""

    def found(tuner, search):
        Path(path).write_text(json.dumps({"step": tuner.result.steps, "digest": digest(tuner, search)}))
        os._exit(LOADED)

    Tuner._step = found


def die_before_step(number):
    """Die when `number` steps are done and saved."""
    take = Tuner._step

    def step(tuner, search):
        if tuner.result.steps == number:
            die()
        take(tuner, search)

    Tuner._step = step


def arm():
    if "TUNEPRUNE_FAULT" in os.environ:
        Faults(**json.loads(os.environ["TUNEPRUNE_FAULT"])).install()
    if "TUNEPRUNE_STEP" in os.environ:
        die_before_step(int(os.environ["TUNEPRUNE_STEP"]))
    if "TUNEPRUNE_LOADED" in os.environ:
        exit_when_loaded(os.environ["TUNEPRUNE_LOADED"])


def child(request):
    os.environ.update(request["env"])
    arm()
    return start(request)


run.masked_probe = fork_server.take_probe  # no further files in the folder than a user would find
start, fork_server.child = fork_server.child, child

if __name__ == "__main__":
    fork_server.main()
elif __name__ == "__mp_main__":  # a process of a comparison
    torch.set_num_threads(1)
    arm()
