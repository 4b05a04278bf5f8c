"""What grows and what must not: `scripts/bench scale` and `scripts/bench soak`, called by scripts/bench.

scale: what an operation costs as files, names in one directory and the size of a file grow, and what memory the daemon
takes, beside the bare passthrough. soak: all kinds of work for long in one mount, and the memory of both daemons over time.
Work is counted in processor time of the daemon (its system calls included), which other work on the machine changes little,
and in time of the clock.
"""

import os
import random
import sqlite3
import threading
import time
from pathlib import Path

import bench_report

TICKS = os.sysconf("SC_CLK_TCK")
PAGE, MIB, TIB = 4096, 1 << 20, 1 << 40
STEPS = 10
DIRECTORIES = 1_000
SEED = 20_26
SAMPLE_SECONDS = 5


def pid_of(mountpoint):
    """The process that serves the mount: the one that has it in its command line, and is no shell."""
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0") if entry.name.isdigit() else []
        except OSError:
            continue
        if os.fsencode(mountpoint) in words and Path(os.fsdecode(words[0])).name in ("kmsfs", "floor"):
            return int(entry.name)
    raise SystemExit(f"bench: nothing serves {mountpoint}")


def processor_seconds(pid):
    """In its own code, and in the kernel for it."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return int(fields[11]) / TICKS, int(fields[12]) / TICKS


def memory(pid, line="VmRSS"):
    """MiB."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(found for found in status if found.startswith(line)).split()[1]) / 1024


def cost(pid, count, work):
    """Microseconds of an operation: of the daemon's processor time, and of the clock."""
    busy, start = sum(processor_seconds(pid)), time.perf_counter()
    work()
    return 1e6 * (sum(processor_seconds(pid)) - busy) / count, 1e6 * (time.perf_counter() - start) / count


class Curves:
    """Series of points by row and target, as they are found; each is printed at once."""

    def __init__(self):
        self.found = {}

    def add(self, row, target, at, value, unit):
        self.found.setdefault(row, {"unit": unit, "series": {}})["series"].setdefault(target, []).append((at, value))
        print(f"{row:<34} {target:<6} {at:>16,}   {value:10.2f} {unit}", flush=True)


def make(path):
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))


def grow_names(curves, target, pid, files, name, place):
    """`files` empty files in tenths at `place(number)`: making each, a look at random ones, and the memory for them."""
    before, chance = memory(pid), random.Random(SEED)
    for step in range(STEPS):
        numbers = range(step * files // STEPS, (step + 1) * files // STEPS)
        busy, _ = cost(pid, len(numbers), lambda: [make(place(n)) for n in numbers])
        curves.add(f"create, {name}", target.name, numbers.stop, busy, "us")
        looks = [place(chance.randrange(numbers.stop)) for _ in range(max(1, files // 100))]
        _, passed = cost(pid, len(looks), lambda: [os.stat(path) for path in looks])
        curves.add(f"stat, {name}, by the clock", target.name, numbers.stop, passed, "us")
        curves.add(f"memory, {name}", target.name, numbers.stop, memory(pid) - before, "MiB")


def names(curves, target, pid, files):
    one, many = target.dir / "one", target.dir / "many"
    one.mkdir()
    grow_names(curves, target, pid, files, "one directory", lambda n: f"{one}/{n}")
    busy, _ = cost(pid, files, lambda: sum(1 for _ in os.scandir(one)))
    curves.add("list, one directory", target.name, files, busy, "us")
    for number in range(DIRECTORIES):
        (many / str(number)).mkdir(parents=True)
    grow_names(curves, target, pid, files, "1,000 directories", lambda n: f"{many}/{n % DIRECTORIES}/{n}")


def sizes(curves, target, pid, blocks):
    """4 KiB at random places of sparse files from 1 MiB to 1 TiB: written, overwritten, read after their caches went."""
    data, size = os.urandom(PAGE), MIB
    while size <= TIB:
        fd = os.open(target.dir / f"sparse-{size}", os.O_RDWR | os.O_CREAT)
        os.ftruncate(fd, size)
        chance = random.Random(SEED)
        count = min(blocks, size // PAGE)
        places = [PAGE * chance.randrange(size // PAGE) for _ in range(count)]

        def write():
            for place in places:
                os.pwrite(fd, data, place)
            os.fsync(fd)

        def read():
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            for place in places:
                os.pread(fd, PAGE, place)

        for name, work in (("write 4 KiB", write), ("overwrite 4 KiB", write), ("read 4 KiB", read)):
            busy, _ = cost(pid, count, work)
            curves.add(f"{name} by size of file", target.name, size, busy, "us")
        os.close(fd)
        os.unlink(target.dir / f"sparse-{size}")
        size *= 32


def dense(curves, target, pid, gib):
    """One file of `gib` GiB written and read as a stream: MB/s of each tenth by the clock."""
    path, chunk, tenth = target.dir / "dense", os.urandom(MIB), max(1, gib * 1024 // STEPS)

    def pass_through(row, flags, move):
        fd = os.open(path, flags, 0o600)
        for step in range(STEPS):
            start = time.perf_counter()
            for _ in range(tenth):
                move(fd)
            if flags & os.O_CREAT:
                os.fsync(fd)
            curves.add(row, target.name, (step + 1) * tenth * MIB, tenth * MIB / 1e6 / (time.perf_counter() - start), "MB/s")
        os.close(fd)

    pass_through("stream written", os.O_WRONLY | os.O_CREAT, lambda fd: os.write(fd, chunk))
    pass_through("stream read", os.O_RDONLY, lambda fd: os.read(fd, MIB))
    os.unlink(path)


def scale(targets, base, files, blocks, gib):
    """Measures each target of `targets` (classes) in turn below `base`; gives the curves."""
    curves = Curves()
    for kind in targets:
        target = kind(base)
        target.start()
        try:
            pid = pid_of(target.dir)
            sizes(curves, target, pid, blocks)
            if gib:
                dense(curves, target, pid, gib)
            if target.name == "kmsfs":  # The floor holds a descriptor for each inode, and so 20,000 at most.
                names(curves, target, pid, files)
            curves.add("most memory at any time", target.name, files, memory(pid, "VmHWM"), "MiB")
        finally:
            target.stop()
    return curves.found


# ---- the soak


def churn(where, over, chance):
    """Small files made, read, moved and removed in a set of some thousand."""
    (where / "churn").mkdir()
    while not over.is_set():
        path = where / "churn" / str(chance.randrange(4_000))
        path.write_bytes(os.urandom(chance.randrange(1, 40_000)))
        other = where / "churn" / str(chance.randrange(4_000))
        if other.exists():
            other.read_bytes()
            other.rename(path) if chance.random() < 0.5 else other.unlink()
        yield


def stream(where, over, chance):
    """A large file, written whole, read, cut."""
    chunk = os.urandom(MIB)
    while not over.is_set():
        with open(where / "stream", "w+b", buffering=0) as file:
            for _ in range(chance.randrange(16, 256)):
                file.write(chunk)
                yield
            file.seek(0)
            while file.read(MIB):
                yield


def scatter(where, over, chance):
    """4 KiB at random places of one file, some of it synced."""
    with open(where / "scatter", "w+b", buffering=0) as file:
        file.truncate(1024 * MIB)
        while not over.is_set():
            os.pwrite(file.fileno(), os.urandom(PAGE), PAGE * chance.randrange(1024 * MIB // PAGE))
            if chance.random() < 0.05:
                os.fsync(file.fileno())
            yield


def database(where, over, chance):
    """SQLite in its write-ahead form, its rows changed in place."""
    base = sqlite3.connect(where / "base.db", isolation_level=None)
    base.execute("pragma journal_mode=wal")
    base.execute("create table t (id integer primary key, text blob)")
    while not over.is_set():
        base.execute("replace into t values (?, ?)", (chance.randrange(20_000), os.urandom(300)))
        yield
    base.close()


def look(where, over, _):
    """The whole tree, looked at again and again; names that vanish meanwhile are none of its business."""
    while not over.is_set():
        for root, _, files in os.walk(where):
            for name in files:
                try:
                    os.lstat(os.path.join(root, name))
                except FileNotFoundError:
                    pass
            yield


def keep_at(work, where, over, done, failed):
    """Runs `work` to its end, counting; a file that another thread has just removed is no failure."""
    steps = work(where, over, random.Random(f"{SEED} {work.__name__}"))
    try:
        for _ in steps:
            done[work.__name__] += 1
    except Exception as error:  # Told by the caller: a thread's own trace would be lost in the output.
        failed.append(f"{work.__name__}: {error!r}")
        over.set()


def soak(target, seconds):
    """All kinds of work in one mount for so long. Gives (second, MiB of kmsfs, MiB of kmsd, descriptors, work) by time."""
    pids = pid_of(target.dir), target.daemon.pid()
    kinds = (churn, stream, scatter, database, look)
    over, failed, done, samples = threading.Event(), [], {kind.__name__: 0 for kind in kinds}, []
    threads = [threading.Thread(target=keep_at, args=(kind, target.dir, over, done, failed)) for kind in kinds]
    for thread in threads:
        thread.start()
    start = time.monotonic()
    while not over.wait(SAMPLE_SECONDS) and time.monotonic() - start < seconds:
        open_now = len(os.listdir(f"/proc/{pids[0]}/fd"))
        samples.append((round(time.monotonic() - start), memory(pids[0]), memory(pids[1]), open_now, sum(done.values())))
        print(f"{samples[-1][0]:>6} s   kmsfs {samples[-1][1]:6.1f} MiB, {open_now} descriptors   kmsd {samples[-1][2]:6.1f} MiB   "
              f"{samples[-1][4]:,} operations", flush=True)
    over.set()
    for thread in threads:
        thread.join()
    if failed:
        raise SystemExit(f"bench: the soak failed: {'; '.join(failed)}")
    return {"samples": samples, "most": memory(pids[0], "VmHWM"), "done": done}


def told_of_soak(found):
    """What a soak showed, in words: memory of its second and its last quarter, since the first fills the caches."""
    samples = found["samples"]
    quarter = max(1, len(samples) // 4)

    def middle(column, part):
        return sorted(sample[column] for sample in part)[len(part) // 2]

    lines = [f"{samples[-1][0]:,} seconds, {sum(found['done'].values()):,} operations ({', '.join(f'{k} {n:,}' for k, n in found['done'].items())}). "
             f"At most {found['most']:.1f} MiB resident.", "", "| | second quarter | last quarter |", "|---|---:|---:|"]
    for column, name in ((1, "`kmsfs`, MiB"), (2, "`kmsd`, MiB"), (3, "open files of `kmsfs`")):
        lines.append(f"| {name} | {middle(column, samples[quarter:2 * quarter] or samples):.4g} | {middle(column, samples[-quarter:]):.4g} |")
    return "\n".join(lines)


def publish_soak(found):
    samples = found["samples"]
    series = {"kmsfs": [(s[0], s[1]) for s in samples], "kmsd": [(s[0], s[2]) for s in samples]}
    panels = [("resident memory by time in seconds", "MiB", series)]
    bench_report.publish_plain("soak", told_of_soak(found), bench_report.curves(panels))


def publish_scale(found):
    panels = [(row, row_found["unit"], row_found["series"]) for row, row_found in found.items()
              if all(len(points) > 1 for points in row_found["series"].values())]
    lines = ["| row | target | from | to | at the first | at the last |", "|---|---|---:|---:|---:|---:|"]
    for row, row_found in found.items():
        for target, points in row_found["series"].items():
            (first, low), (last, high) = points[0], points[-1]
            lines.append(f"| {row} | {target} | {first:,} | {last:,} | {low:.1f} {row_found['unit']} | {high:.1f} {row_found['unit']} |")
    bench_report.publish_plain("scale", "\n".join(lines), bench_report.curves(panels))
