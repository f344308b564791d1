"""Runs another program in this process and exits as soon as the parent process does.

Usage: python end_with_parent.py PROGRAM ARGUMENTS..., with the reading end of a pipe as standard input, whose other end
the parent process holds.
"""

import os
import runpy
import sys
import threading


def end_with_parent() -> None:
    """Wait for the end of standard input, which closes even where the parent was killed, and exit."""
    os.read(0, 1)
    os._exit(1)


def main(program: str, *arguments: str) -> None:
    """Run the program with these arguments."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    sys.argv = [program, *arguments]
    runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    main(*sys.argv[1:])
