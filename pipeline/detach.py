"""Starts a program as a child of init, then prints its process id.

Run as a script: `python -S detach.py LOG PROGRAM [ARG ...]`. The program begins only once
its first parent is gone, so one that asks to be stopped with its parent is not.
"""

import os
import sys
import time


def main(log: str, argv: list[str]) -> None:
    launcher = os.getpid()
    pid = os.fork()
    if pid:
        print(pid, flush=True)
        return
    os.setsid()
    while os.getppid() == launcher:
        time.sleep(0.001)
    sink = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    # GitHub's runner ends, after a job, every process that still has this variable of the job.
    os.environ.pop("RUNNER_TRACKING_ID", None)
    os.execv(argv[0], argv)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
