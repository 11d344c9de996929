"""Exec wrapper: become the program on one core. `python -I -S pinned.py CORE PROGRAM ARGUMENT...`.

All of the program: it inherits the choice before its first thread.
"""

import os
import sys


def main() -> None:
    core, *command = sys.argv[1:]
    os.sched_setaffinity(0, {int(core)})
    os.execvp(command[0], command)  # noqa: S606 - without a shell is what is wanted


if __name__ == "__main__":
    main()
