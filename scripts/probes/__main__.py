"""Small probes of what a local filesystem promises, each after a case that filesystems are known to get wrong.

    python3 scripts/probes DIR [NAME...]

Runs each probe in a fresh directory below DIR, in a process of its own, and prints "ok", "failed" or "skipped" and its
name; why it failed goes to stderr. The expectations are Linux's, as ext4 meets them: scripts/posix runs this on a mount
and on the plain filesystem beside it. Needs root, and a DIR that other users may search.
"""
import os, shutil, signal, sys, traceback

import calls, contents, maps, names, rights
from kit import Skipped

# Seconds. Nothing here takes a tenth of it; what does hangs.
PATIENCE = 120
SKIPPED = 77


def probes():
    for module in (names, contents, rights, maps, calls):
        for name, act in vars(module).items():
            if callable(act) and getattr(act, "__module__", "") == module.__name__ and act.__code__.co_argcount == 0:
                yield name, act


def run(top, name, act):
    place = os.path.join(top, name)
    os.mkdir(place)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.umask(0o022)
            os.chdir(place)
            signal.alarm(PATIENCE)
            act()
            code = 0
        except Skipped as why:
            print(f"{name}: {why}", file=sys.stderr)
            code = SKIPPED
        except BaseException:
            print(f"{name}:\n{traceback.format_exc()}", file=sys.stderr, flush=True)
        sys.stderr.flush()
        os._exit(code)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status < 0:
        print(f"{name}: ended by signal {-status}", file=sys.stderr)
    shutil.rmtree(place, ignore_errors=True)
    return {0: "ok", SKIPPED: "skipped"}.get(status, "failed")


def main():
    top, chosen = os.path.abspath(sys.argv[1]), sys.argv[2:]
    for name, act in probes():
        if not chosen or name in chosen:
            print(run(top, name, act), name, flush=True)


main()
