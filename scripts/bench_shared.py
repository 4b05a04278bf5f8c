"""For scripts/bench on a machine that others use too: a target and its workload run in the real-time class, in turn with pauses.

What waits for a processor behind others measures them. In bursts of seconds, with a pause after each, nobody
starves, and the targets stand beside each other as on a quiet machine but for what the disk and its kernel threads do.
"""

import os
import time
from contextlib import contextmanager
from pathlib import Path

PRIORITY = 1
PAUSE_MAX_SECONDS = 3


def threads_of(folder):
    """The threads of all processes that were started with a path in `folder`."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if int(process.name) != os.getpid() and str(folder).encode() in (process / "cmdline").read_bytes():
                yield from (int(thread.name) for thread in (process / "task").iterdir())
        except (FileNotFoundError, ProcessLookupError):
            continue


def set_class(policy, priority, folder):
    for thread in (0, *threads_of(folder)):
        try:
            os.sched_setscheduler(thread, policy, os.sched_param(priority))
        except ProcessLookupError:
            continue


@contextmanager
def ahead_of_others(folder):
    """Runs what it holds, and the daemons of `folder`, ahead of everybody else; then lets the others run."""
    begin = time.monotonic()
    set_class(os.SCHED_RR, PRIORITY, folder)
    try:
        yield
    finally:
        set_class(os.SCHED_OTHER, 0, folder)
        time.sleep(min(time.monotonic() - begin, PAUSE_MAX_SECONDS))
