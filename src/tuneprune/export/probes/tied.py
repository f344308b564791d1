"""Runs another program of this folder, which ends as soon as the process that started it does.

Usage: python tied.py PROGRAM ARGUMENTS..., with the reading end of a pipe, whose other end that process holds, as
standard input.
"""

import os
import runpy
import sys
import threading


def end_with_parent() -> None:
    """Wait for the end of standard input; whoever holds the other end may have been killed."""
    os.read(0, 1)
    os._exit(1)


def main(program: str, *arguments: str) -> None:
    """Be the program."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    sys.argv = [program, *arguments]
    runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    main(*sys.argv[1:])
