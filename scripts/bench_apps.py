"""Workloads of scripts/bench that run programs as users do: git, fio, cargo, PostgreSQL, the source of Linux, archives in
parallel, large directories.

Each takes (directory, size, prepared material) and returns {row: value}; what a program is missing for gives no row.
"""

import json
import mmap
import os
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

ROWS = {
    "git": ("git_clone_s", "git_status_s"),
    "fio_mixed": ("fio_70_30_x4",),
    "mapped": ("mmap_read",),
    "large_dir": ("dir_create_per_s", "dir_list_s"),
    "untar_parallel": ("untar_x4_s",),
    "cargo": ("cargo_build_s",),
    "postgres": ("pgbench_tps",),
    "linux": ("linux_untar_s", "linux_grep_cold_s"),
}
MODULES = 40
PG_CLIENTS = 4


def postgres_programs():
    """Where the newest server's programs are; None where there is none."""
    return max(Path("/usr/lib/postgresql").glob("*/bin"), default=None, key=lambda path: int(path.parent.name))


def linux_source():
    return max(Path("/usr/src").glob("linux-source-*.tar.xz"), default=None)


def packages():
    """The Debian packages that the workloads want: PROGRAM:PACKAGE, for what has no program one that never is."""
    wanted = ["git:git", "fio:fio", "xz:xz-utils"]
    wanted += [] if postgres_programs() else ["no-postgresql:postgresql"]
    return wanted + ([] if linux_source() else ["no-linux-source:linux-source"])


def run(*command, **more):
    subprocess.run([str(c) for c in command], check=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                   stderr=subprocess.PIPE, timeout=1800, **more)


def timed(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def drop_caches():
    os.sync()
    try:
        with open("/proc/sys/vm/drop_caches", "w") as drop:
            drop.write("3\n")
    except OSError:
        pass


def origin_of(archive):
    """A repository of the archive's files beside it, made once for all targets."""
    origin = archive.parent / "origin"
    if not origin.exists():
        origin.mkdir()
        run("tar", "-xf", archive, "-C", origin)
        who = ("-c", "user.name=bench", "-c", "user.email=bench@localhost")
        for words in (("init", "-q"), ("add", "."), (*who, "commit", "-qm", "all")):
            run("git", "-C", origin, *words)
    return origin


def git(where, _, archive):
    origin, clone = origin_of(archive), where / "clone"
    rows = {"git_clone_s": timed(lambda: run("git", "clone", "-q", "--no-local", origin, clone))}
    drop_caches()
    rows["git_status_s"] = timed(lambda: run("git", "-C", clone, "status", "--porcelain"))
    shutil.rmtree(clone)
    return rows


def fio_mixed(where, size, _):
    """Four jobs with a file each, 70 % reads and 30 % writes of 4 KiB: operations per second of all."""
    if not shutil.which("fio"):
        return {}
    folder = where / "fio"
    folder.mkdir()
    each = size.stream // 16
    job = ["fio", "--name=mixed", f"--directory={folder}", "--rw=randrw", "--rwmixread=70", "--bs=4k", f"--size={each}",
           "--numjobs=4", "--ioengine=psync", "--fsync_on_close=1", "--group_reporting", "--output-format=json"]
    run(*job, "--create_only=1")
    drop_caches()
    done = subprocess.run([*job, f"--io_size={each}"], check=True, capture_output=True, text=True, timeout=1800)
    found = json.loads(done.stdout[done.stdout.index("{"):])["jobs"][0]
    shutil.rmtree(folder)
    return {"fio_70_30_x4": found["read"]["iops"] + found["write"]["iops"]}


def mapped(where, size, _):
    """A mapping read from end to end, cold: MB/s."""
    path, length = where / "mapped", size.stream // 2
    with open(path, "wb") as out:
        for _ in range(length >> 20):
            out.write(os.urandom(1 << 20))
        os.fsync(out.fileno())
    drop_caches()

    def read():
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as view:
            sum(view[at] for at in range(0, length, 4096))

    rows = {"mmap_read": length / 1e6 / timed(read)}
    path.unlink()
    return rows


def large_dir(where, size, _):
    """A directory of very many empty files: making them, and listing them cold."""
    folder = where / "large"
    folder.mkdir()

    def create():
        for number in range(size.large_dir):
            os.close(os.open(folder / f"entry-{number:07}", os.O_WRONLY | os.O_CREAT, 0o644))

    rows = {"dir_create_per_s": size.large_dir / timed(create)}
    drop_caches()
    rows["dir_list_s"] = timed(lambda: run("ls", "-l", folder))
    shutil.rmtree(folder)
    return rows


def untar_parallel(where, _, archive):
    """The archive unpacked four times at once."""
    def unpack():
        running = []
        for number in range(4):
            folder = where / f"part{number}"
            folder.mkdir()
            running.append(subprocess.Popen(["tar", "-xf", archive, "-C", folder]))
        if any(one.wait() for one in running):
            raise RuntimeError("tar failed")

    rows = {"untar_x4_s": timed(unpack)}
    for number in range(4):
        shutil.rmtree(where / f"part{number}")
    return rows


def cargo(where, _, __):
    """A crate of many small modules, built with its target directory on the target."""
    if not shutil.which("cargo"):
        return {}
    crate = where / "crate"
    (crate / "src").mkdir(parents=True)
    (crate / "Cargo.toml").write_text('[package]\nname = "bench"\nversion = "0.1.0"\nedition = "2021"\n')
    names = [f"part{number}" for number in range(MODULES)]
    for name in names:
        body = "\n".join(f"pub fn f{n}(x: u64) -> u64 {{ x.rotate_left({n}) ^ {n} }}" for n in range(50))
        (crate / f"src/{name}.rs").write_text(body + "\n")
    uses = " ^ ".join(f"{name}::f1(1)" for name in names)
    (crate / "src/main.rs").write_text(
        "".join(f"mod {name};\n" for name in names) + f"fn main() {{ println!(\"{{}}\", {uses}) }}\n")
    env = {**os.environ, "CARGO_TARGET_DIR": str(crate / "target"), "RUSTFLAGS": "-Awarnings"}
    rows = {"cargo_build_s": timed(lambda: run("cargo", "build", "--offline", "-q", cwd=crate, env=env))}
    shutil.rmtree(crate)
    return rows


def postgres(where, size, _):
    """TPC-B-like transactions of four clients against a server that keeps its database on the target, with its own syncs."""
    programs = postgres_programs()
    if not programs:
        return {}
    # The server refuses to be root: it is another user in a namespace in which that user is us.
    drop = ("unshare", "--user", "--map-user=1000", "--map-group=1000") if os.geteuid() == 0 else ()
    data = where / "pg"
    with tempfile.TemporaryDirectory(prefix="bench-pg-") as sockets:
        client = (programs / "pgbench", "-h", sockets, "-U", "bench")
        run(*drop, programs / "initdb", "-D", data, "-U", "bench", "-A", "trust", "--no-locale")
        control = (*drop, programs / "pg_ctl", "-D", data, "-w")
        run(*control, "-l", f"{sockets}/log", "-o", f"-k {sockets} -c listen_addresses=''", "start")
        try:
            run(*client, "-i", "-q", "-s", size.pg_scale, "postgres")
            done = subprocess.run([str(c) for c in (*client, "-n", "-c", PG_CLIENTS, "-j", 2, "-t", size.pg_transactions, "postgres")],
                                  check=True, capture_output=True, text=True, timeout=1800)
        finally:
            run(*control, "-m", "fast", "stop")
    shutil.rmtree(data)
    return {"pgbench_tps": float(re.search(r"^tps = ([0-9.]+)", done.stdout, re.MULTILINE)[1])}


def linux_archive(size, beside):
    """The source of Linux, or the parts of it that `size` asks for, as a plain archive, made once for all targets."""
    archive, source = beside.parent / "linux.tar", linux_source()
    if not archive.exists():
        folder = beside.parent / "linux-source"
        folder.mkdir()
        top = source.name.removesuffix(".tar.xz")
        run("tar", "-xJf", source, "-C", folder, *(f"{top}/{part}" for part in size.linux_parts))
        run("tar", "-cf", archive, "-C", folder, top)
        shutil.rmtree(folder)
    return archive


def linux(where, size, archive):
    """The source of Linux unpacked, and searched with cold caches."""
    if not linux_source():
        return {}
    archive, folder = linux_archive(size, archive), where / "linux"
    folder.mkdir()
    rows = {"linux_untar_s": timed(lambda: run("tar", "-xf", archive, "-C", folder))}
    drop_caches()
    rows["linux_grep_cold_s"] = timed(lambda: run("grep", "-rc", "EXPORT_SYMBOL", folder))
    shutil.rmtree(folder)
    return rows


WORKLOADS = [git, fio_mixed, mapped, large_dir, untar_parallel, cargo, postgres, linux]
