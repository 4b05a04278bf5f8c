"""What the kernel does with files beyond reading and writing: mappings, locks, leases, notification, handles, signals."""
import ctypes, errno, fcntl, mmap, os, select, signal, struct, subprocess, threading, time
from kit import *

OFD_GETLK, OFD_SETLK, OFD_SETLKW = 36, 37, 38


def dies_by(number, act):
    """`act` in a process of its own ends by this signal."""
    child = os.fork()
    if child == 0:
        act()
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == -number, status


def mapping_behind_the_end_is_sigbus():
    fd = new("f", b"x" * 5000)
    space = Mapping(fd, 16384)
    assert space.get(4999, 3193) == b"x" + bytes(3192)
    dies_by(signal.SIGBUS, lambda: space.get(8192))
    os.ftruncate(fd, 4096)
    dies_by(signal.SIGBUS, lambda: space.get(4096))
    os.ftruncate(fd, 12288)
    assert space.get(4096, 8192) == bytes(8192)
    os.ftruncate(fd, 0)
    dies_by(signal.SIGBUS, lambda: space.get(0))
    dies_by(signal.SIGBUS, lambda: space.put(0, b"x"))


def private_mappings_stay_private():
    fd = new("f", b"x" * 8192)
    private = mmap.mmap(fd, 8192, mmap.MAP_PRIVATE)
    private[0:5] = b"mine!"
    os.pwrite(fd, b"theirs", 4096)
    assert content("f")[:5] == b"xxxxx" and private[4096:4102] == b"theirs" and private[:5] == b"mine!"


def mapping_rights():
    put("f", b"x" * 100)
    read, write = os.open("f", os.O_RDONLY), os.open("f", os.O_WRONLY)
    expect(errno.EACCES, mmap.mmap, read, 100)
    expect(errno.EACCES, mmap.mmap, write, 100)
    mmap.mmap(read, 100, mmap.MAP_PRIVATE)
    shared = mmap.mmap(read, 100, mmap.MAP_SHARED, mmap.PROT_READ)
    os.unlink("f")
    os.close(read)
    os.close(write)
    assert shared[:] == b"x" * 100


def mappings_of_processes_are_one():
    fd = new("f", bytes(8192))
    space = mmap.mmap(fd, 8192)
    child = os.fork()
    if child == 0:
        other = mmap.mmap(os.open("f", os.O_RDWR), 8192)
        other[4000:4200] = b"z" * 200
        os._exit(0)
    os.waitpid(child, 0)
    assert space[4000:4200] == b"z" * 200 == os.pread(fd, 200, 4000)
    space.flush()
    os.ftruncate(fd, 4100)
    os.ftruncate(fd, 8192)
    assert space[4090:4110] == b"z" * 10 + bytes(10)


def punched_holes_leave_mappings():
    fd = new("f", b"x" * 65536)
    space = mmap.mmap(fd, 65536)
    assert space[5000] == ord("x")
    fallocate(fd, PUNCH | KEEP, 4096, 8192)
    assert space[4096:12288] == bytes(8192)
    space[5000] = 7
    assert os.pread(fd, 1, 5000) == b"\7"
    fallocate(fd, ZERO, 100, 50)
    assert space[90:160] == b"x" * 10 + bytes(50) + b"x" * 10


def writes_from_a_mapping_of_the_same_page():
    fd = new("f", bytes(range(256)) * 32)
    space = mmap.mmap(fd, 8192)
    libc.pwrite.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_long]
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    base = ctypes.addressof(ctypes.c_char.from_buffer(space))
    assert call(libc.pwrite, fd, base + 10, 1000, 4090) == 1000
    assert os.pread(fd, 1000, 4090) == (bytes(range(256)) * 32)[10:1010]


def mapped_files_survive_rename_and_unlink():
    fd = new("f", b"x" * 4096)
    space = mmap.mmap(fd, 4096)
    os.close(fd)
    put("g", b"other")
    os.rename("g", "f")
    space[0:3] = b"abc"
    space.flush()
    assert content("f") == b"other" and space[:3] == b"abc"


def mapped_writes_race_with_calls():
    """Whole words stay whole, whichever way they come."""
    size = 1 << 18
    fd = new("f", bytes(size))
    space = mmap.mmap(fd, size)

    def by_calls():
        for turn in range(300):
            at = turn * 613 % (size // 8) * 8
            os.pwrite(fd, struct.pack("<Q", at), at)

    def by_map():
        for turn in range(3000):
            at = turn * 997 % (size // 8) * 8
            space[at:at + 8] = struct.pack("<Q", at)

    def by_sync():
        for _ in range(30):
            os.fsync(fd)
    threads = [threading.Thread(target=act) for act in (by_calls, by_map, by_sync)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    words = struct.unpack(f"<{size // 8}Q", content("f"))
    assert all(word in (0, at * 8) for at, word in enumerate(words))
    assert sum(word != 0 for word in words) >= 2990


def locks_of_ranges():
    put("f", b"x" * 100)
    fd = os.open("f", os.O_RDWR)
    fcntl.lockf(fd, fcntl.LOCK_EX, 10, 20)
    here, there = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            other = os.open("f", os.O_RDWR)
            fcntl.lockf(other, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 30)
            expect((errno.EAGAIN, errno.EACCES), fcntl.lockf, other, fcntl.LOCK_SH | fcntl.LOCK_NB, 5, 25)
            asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0)
            kind, _, start, length, pid = struct.unpack("hhqqi4x", fcntl.fcntl(other, fcntl.F_GETLK, asked))
            assert (kind, start, length, pid) == (fcntl.F_WRLCK, 20, 10, os.getppid())
            os.write(there, b"x")
            fcntl.lockf(other, fcntl.LOCK_EX, 10, 20)
            code = 0
        finally:
            os._exit(code)
    os.read(here, 1)
    time.sleep(0.1)
    # Closing any descriptor of the file gives up the process's locks.
    os.close(os.open("f", os.O_RDONLY))
    assert os.waitpid(child, 0)[1] == 0


def locks_that_wait_for_each_other_are_edeadlk():
    fd = new("f", b"x" * 100)
    fcntl.lockf(fd, fcntl.LOCK_EX, 10, 0)
    here, there = os.pipe()
    child = os.fork()
    if child == 0:
        other = os.open("f", os.O_RDWR)
        fcntl.lockf(other, fcntl.LOCK_EX, 10, 50)
        os.write(there, b"x")
        fcntl.lockf(other, fcntl.LOCK_EX, 10, 0)
        os._exit(0)
    os.read(here, 1)
    while not any("->" in line and f" {child} " in line for line in open("/proc/locks")):
        time.sleep(0.01)
    expect(errno.EDEADLK, fcntl.lockf, fd, fcntl.LOCK_EX, 10, 50)
    fcntl.lockf(fd, fcntl.LOCK_UN)
    assert os.waitpid(child, 0)[1] == 0


def a_waiting_lock_is_interrupted():
    for take in (lambda fd: fcntl.lockf(fd, fcntl.LOCK_EX), lambda fd: fcntl.flock(fd, fcntl.LOCK_EX)):
        fd = os.open("f", os.O_RDWR | os.O_CREAT)
        take(fd)

        class Alarm(Exception):
            pass

        def ring(*_):
            raise Alarm
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGALRM, ring)
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            code = 1
            try:
                take(os.open("f", os.O_RDWR))
            except Alarm:
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
        os.close(fd)


def locks_of_descriptions():
    fd, other = os.open("f", os.O_RDWR | os.O_CREAT), os.open("f", os.O_RDWR)
    lock = struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 10, 0)
    fcntl.fcntl(fd, OFD_SETLK, lock)
    expect(errno.EAGAIN, fcntl.fcntl, other, OFD_SETLK, lock)
    os.close(os.open("f", os.O_RDONLY))
    expect(errno.EAGAIN, fcntl.fcntl, other, OFD_SETLK, lock)
    twin = os.dup(fd)
    os.close(fd)
    expect(errno.EAGAIN, fcntl.fcntl, other, OFD_SETLK, lock)
    os.close(twin)
    fcntl.fcntl(other, OFD_SETLK, lock)
    fcntl.flock(other, fcntl.LOCK_SH)
    fcntl.flock(os.open("f", os.O_RDONLY), fcntl.LOCK_SH | fcntl.LOCK_NB)
    expect(errno.EAGAIN, fcntl.flock, other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def leases():
    fd = new("f", b"x")
    os.close(fd)
    fd = os.open("f", os.O_RDONLY)
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as e:
        raise Skipped(str(e)) from e
    assert fcntl.fcntl(fd, fcntl.F_GETLEASE) == fcntl.F_RDLCK
    signal.signal(signal.SIGIO, signal.SIG_IGN)
    expect(errno.EAGAIN, lambda: os.open("f", os.O_WRONLY | os.O_NONBLOCK))


def changes_are_notified():
    inotify = call(libc.inotify_init1, os.O_NONBLOCK)
    call(libc.inotify_add_watch, inotify, b".", 0xfff)
    fd = new("f", b"x")
    os.close(fd)
    os.rename("f", "g")
    os.chmod("g", 0o600)
    content("g")
    os.unlink("g")
    seen, raw = [], os.read(inotify, 65536)
    while raw:
        _, mask, _, length = struct.unpack_from("<iIII", raw)
        seen.append((mask, raw[16:16 + length].rstrip(b"\0")))
        raw = raw[16 + length:]
    for wanted in ((0x100, b"f"), (2, b"f"), (8, b"f"), (0x40, b"f"), (0x80, b"g"), (4, b"g"), (1, b"g"), (0x200, b"g")):
        assert wanted in seen, (wanted, seen)


def handles_open_what_they_name():
    """name_to_handle_at and open_by_handle_at, which NFS servers and fanotify use."""
    libc.name_to_handle_at.argtypes = None
    put("f", b"by its handle")
    handle = ctypes.create_string_buffer(struct.pack("<Ii", 128, 0), 136)
    mount = ctypes.c_int()
    call(libc.name_to_handle_at, -100, b"f", handle, ctypes.byref(mount), 0)
    here = os.open(".", os.O_RDONLY)
    fd = call(libc.open_by_handle_at, here, handle, os.O_RDONLY)
    assert os.read(fd, 100) == b"by its handle"
    os.close(fd)
    os.rename("f", "g")
    fd = call(libc.open_by_handle_at, here, handle, os.O_RDONLY)
    assert os.read(fd, 100) == b"by its handle"
    os.close(fd)
    os.unlink("g")
    expect(errno.ESTALE, call, libc.open_by_handle_at, here, handle, os.O_RDONLY)


def signals_do_not_cut_writes_to_pieces():
    """A program that gets signals all the time reads and writes whole files."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.signal(signal.SIGALRM, lambda *_: None)
            signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)
            fd = new("f")
            for turn in range(60):
                assert os.pwrite(fd, bytes([turn]) * 300000, turn * 300000) == 300000
                if turn % 10 == 0:
                    os.fsync(fd)
            for turn in range(60):
                assert os.pread(fd, 300000, turn * 300000) == bytes([turn]) * 300000
            for turn in range(200):
                os.mkdir(f"d{turn}")
                put(f"d{turn}/x", b"x" * turn)
                os.rename(f"d{turn}/x", f"d{turn}/y")
            assert len(os.listdir(".")) == 201
            code = 0
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0


def a_killed_writer_leaves_whole_pages():
    for turn in range(10):
        child = os.fork()
        if child == 0:
            fd = os.open("f", os.O_RDWR | os.O_CREAT)
            while True:
                for number in range(256):
                    os.pwrite(fd, bytes([number]) * 8192, number * 8192)
        time.sleep(0.03 + turn / 100)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        seen = content("f")
        for at in range(0, len(seen), 4096):
            piece = seen[at:at + 4096]
            assert piece in (bytes([at // 8192]) * len(piece), bytes(len(piece)))


def a_mount_on_a_directory_inside():
    os.mkdir("m")
    put("m/below")
    subprocess.run(["mount", "-t", "tmpfs", "probe", "m"], check=True)
    try:
        assert os.listdir("m") == []
        expect(errno.EBUSY, os.rmdir, "m")
        expect(errno.EBUSY, os.rename, "m", "n")
        put("x")
        expect(errno.EXDEV, os.rename, "x", "m/x")
        expect(errno.EXDEV, os.link, "x", "m/x")
    finally:
        subprocess.run(["umount", "m"], check=True)
    assert os.listdir("m") == ["below"]


def an_overlay_works_on_it():
    for name in ("low", "merged"):
        os.mkdir(name)
    put("low/a", b"low")
    os.mkdir("/dev/shm/probe-overlay")
    upper = "/dev/shm/probe-overlay"
    try:
        os.mkdir(f"{upper}/up")
        os.mkdir(f"{upper}/work")
        subprocess.run(["mount", "-t", "overlay", "probe", "-o", f"lowerdir=low,upperdir={upper}/up,workdir={upper}/work", "merged"], check=True)
        try:
            assert content("merged/a") == b"low"
            with open("merged/a", "ab") as held:
                held.write(b" and more")
            os.rename("merged/a", "merged/b")
            assert content("merged/b") == b"low and more" and content("low/a") == b"low"
        finally:
            subprocess.run(["umount", "merged"], check=True)
    finally:
        import shutil
        shutil.rmtree(upper)


def a_program_runs_from_it_and_a_core_may_be_there():
    put("lib.py", b"print('from the mount')\n")
    got = subprocess.run(["python3", "lib.py"], capture_output=True, check=True)
    assert got.stdout == b"from the mount\n"
    put("script", b"#!/bin/sh\necho \"$0\"\n", 0o755)
    assert subprocess.run(["./script"], capture_output=True, check=True).stdout == b"./script\n"


def swap_and_loop_files():
    fd = new("image")
    os.ftruncate(fd, 16 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", "image"], check=True, env={"PATH": "/usr/sbin:/sbin:/usr/bin:/bin"})
    os.mkdir("m")
    subprocess.run(["mount", "-o", "loop", "image", "m"], check=True)
    try:
        put("m/f", b"inside")
        os.sync()
        assert content("m/f") == b"inside"
    finally:
        subprocess.run(["umount", "m"], check=True)


def polling_a_file_says_ready():
    fd = new("f", b"x")
    poll = select.poll()
    poll.register(fd, select.POLLIN | select.POLLOUT)
    assert poll.poll(0) == [(fd, select.POLLIN | select.POLLOUT)]


def files_are_nothing_for_epoll():
    fd = new("f", b"x")
    expect(errno.EPERM, lambda: select.epoll().register(fd))
