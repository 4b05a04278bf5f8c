"""What is in files: sizes, holes, space, appending, copying, direct and asynchronous I/O, times of writes."""
import ctypes, errno, fcntl, mmap, os, resource, signal, stat, struct, threading, time
from kit import *


def seek_data_and_hole_ends():
    fd = new("f", b"d" * 10000)
    expect(errno.ENXIO, os.lseek, fd, 10000, os.SEEK_DATA)
    expect(errno.ENXIO, os.lseek, fd, 10000, os.SEEK_HOLE)
    expect(errno.ENXIO, os.lseek, fd, 1 << 40, os.SEEK_DATA)
    expect((errno.ENXIO, errno.EINVAL), os.lseek, fd, -1, os.SEEK_DATA)
    expect(errno.EINVAL, os.lseek, fd, -1, os.SEEK_SET)
    expect(errno.EINVAL, os.lseek, fd, 0, 9)
    assert os.lseek(fd, 9999, os.SEEK_DATA) == 9999 and os.lseek(fd, 0, os.SEEK_HOLE) == 10000
    assert os.lseek(fd, 5000, os.SEEK_HOLE) == 10000
    empty = new("e")
    expect(errno.ENXIO, os.lseek, empty, 0, os.SEEK_DATA)
    expect(errno.ENXIO, os.lseek, empty, 0, os.SEEK_HOLE)
    os.ftruncate(empty, 1 << 20)
    expect(errno.ENXIO, os.lseek, empty, 0, os.SEEK_DATA)
    assert os.lseek(empty, 4567, os.SEEK_HOLE) == 4567
    assert os.lseek(empty, 10, os.SEEK_CUR) == 4577
    assert os.lseek(empty, -1, os.SEEK_END) == (1 << 20) - 1


def seek_sees_what_is_not_written_back():
    for gap in (4096, 65536, 1 << 20, 16 << 20):
        fd = new(f"f{gap}")
        for place in range(1, 6, 2):
            os.pwrite(fd, b"x" * 4096, place * gap)
        found = extents(fd)
        assert found == [(place * gap, place * gap + 4096) for place in range(1, 6, 2)], found
        os.fsync(fd)
        assert extents(fd) == found
        fallocate(fd, PUNCH | KEEP, gap, 4096)
        assert extents(fd) == found[1:]
        os.ftruncate(fd, 4 * gap)
        assert extents(fd) == found[1:2]
        os.ftruncate(fd, 100 * gap)
        assert extents(fd) == found[1:2]


def mapped_writes_are_data():
    fd = new("f")
    os.ftruncate(fd, 1 << 20)
    with mmap.mmap(fd, 1 << 20) as space:
        space[70000] = 1
        assert extents(fd) == [(69632, 73728)], extents(fd)


def preallocated_space_reads_zero_and_counts():
    fd = new("f", b"head")
    fallocate(fd, KEEP, 0, 1 << 20)
    seen = os.fstat(fd)
    assert seen.st_size == 4 and seen.st_blocks * 512 >= 1 << 20, seen
    fallocate(fd, 0, 0, 1 << 20)
    assert os.fstat(fd).st_size == 1 << 20 and os.pread(fd, 1 << 20, 0) == b"head" + bytes((1 << 20) - 4)
    before = os.fstat(fd).st_blocks
    fallocate(fd, PUNCH | KEEP, 65536, 1 << 19)
    os.fsync(fd)  # btrfs counts then.
    assert os.fstat(fd).st_blocks * 512 <= before * 512 - (1 << 19) + 65536
    os.ftruncate(fd, 0)
    assert os.fstat(fd).st_blocks * 512 <= 65536


def fallocate_errors():
    fd = new("f", b"x" * 100)
    expect(errno.EINVAL, fallocate, fd, 0, 0, 0)
    expect(errno.EINVAL, fallocate, fd, 0, -1, 10)
    expect(errno.EFBIG, fallocate, fd, 0, (1 << 63) - 10, 9)
    expect(errno.EFBIG, fallocate, fd, 0, (1 << 63) - 10, 100)
    expect(errno.EOPNOTSUPP, fallocate, fd, PUNCH, 0, 10)
    read = os.open("f", os.O_RDONLY)
    expect(errno.EBADF, fallocate, read, 0, 0, 10)
    expect((errno.ENODEV, errno.EBADF, errno.EISDIR), fallocate, os.open(".", os.O_RDONLY), 0, 0, 10)
    here, there = os.pipe()
    expect(errno.ESPIPE, fallocate, there, 0, 0, 10)
    assert os.fstat(fd).st_size == 100


def changes_of_space_move_times():
    fd = new("f", b"x" * 100000)
    for mode in (0, KEEP, PUNCH | KEEP, ZERO, ZERO | KEEP):
        assert moved("f", lambda: fallocate(fd, mode, 4096, 200000 if mode == 0 else 8192))[1], mode
    assert moved("f", lambda: os.ftruncate(fd, 50)) == (True, True)
    assert moved("f", lambda: os.ftruncate(fd, 50)) == (True, True)
    assert moved("f", lambda: os.truncate("f", 60)) == (True, True)
    assert moved("f", lambda: os.close(os.open("f", os.O_WRONLY | os.O_TRUNC))) == (True, True)
    assert moved("f", lambda: os.close(os.open("f", os.O_WRONLY | os.O_TRUNC))) == (True, True)
    assert moved("f", lambda: os.close(os.open("f", os.O_WRONLY | os.O_CREAT))) == (False, False)


def truncation_by_name_to_the_same_size_moves_times():
    put("f", b"x" * 50)
    assert moved("f", lambda: os.truncate("f", 50)) == (True, True)


def writes_move_times_and_metadata_only_ctime():
    fd = new("f", b"abc")
    assert moved("f", lambda: os.pwrite(fd, b"d", 0)) == (True, True)
    assert moved("f", lambda: os.pwrite(fd, b"", 0)) == (False, False)
    assert moved("f", lambda: os.fchmod(fd, 0o600)) == (False, True)
    assert moved("f", lambda: os.fchmod(fd, 0o600)) == (False, True)
    assert moved("f", lambda: os.fchown(fd, 1, 1)) == (False, True)
    assert moved("f", lambda: os.setxattr(fd, "user.a", b"1")) == (False, True)
    assert moved("f", lambda: os.removexattr(fd, "user.a")) == (False, True)
    assert moved("f", lambda: os.pread(fd, 1, 0)) == (False, False)
    assert moved("f", lambda: os.fsync(fd)) == (False, False)
    with mmap.mmap(fd, 3) as space:
        def through_the_map():
            space[0] = 65
            space.flush()
        assert moved("f", through_the_map) == (True, True)
    read = os.open("f", os.O_RDONLY)
    assert moved("f", lambda: os.copy_file_range(read, fd, 1, 0, 2)) == (True, True)
    os.close(fd)
    before = times("f")
    time.sleep(TICK)
    os.sync()
    assert times("f") == before


def access_times_of_cached_data():
    put("f", b"x" * 100)
    os.utime("f", (1000, 1000))
    assert len(content("f")) == 100 and os.stat("f").st_atime > 1000


def access_times():
    with open("/proc/self/mountinfo") as table:
        if "noatime" in table.read().split(os.getcwd()[:4])[-1].split("\n")[0]:
            raise Skipped("noatime")
    fd = new("f", b"x" * 100)
    os.utime("f", (1000, 1000))
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)
    fd = os.open("f", os.O_RDONLY)
    os.pread(fd, 10, 0)
    assert os.stat("f").st_atime > 1000, "relatime: older than mtime, so it moves"
    os.mkdir("d")
    put("d/x")
    os.utime("d", (1000, 1000))
    os.listdir("d")
    assert os.stat("d").st_atime > 1000
    os.symlink("f", "s")
    os.utime("s", (1000, 1000), follow_symlinks=False)
    os.readlink("s")
    assert os.lstat("s").st_atime > 1000
    os.utime("f", (1000, 1000))
    quiet = os.open("f", os.O_RDONLY | os.O_NOATIME)
    os.pread(quiet, 10, 50)
    assert os.stat("f").st_atime == 1000


def times_far_away():
    put("f")
    for seconds in (0, -1, -2**31 + 1, 2**31 - 1, 2**31, 2**32, 15032385534):
        os.utime("f", ns=(seconds * 10**9, seconds * 10**9 + 999999999))
        seen = os.stat("f")
        assert (seen.st_atime_ns, seen.st_mtime_ns) == (seconds * 10**9, seconds * 10**9 + 999999999), (seconds, seen)
    # Kept as the nearest that there is.
    os.utime("f", (2**40, 2**40))
    assert os.stat("f").st_mtime in (15032385535, 2**40, 2**36), os.stat("f").st_mtime


def times_are_set_as_utimensat_says():
    put("f")
    os.utime("f", (5, 6))
    now, omit = (1 << 30) - 1, (1 << 30) - 2

    def set_times(a, m):
        call(libc.utimensat, -100, b"f", struct.pack("<qqqq", a[0], a[1], m[0], m[1]), 0)
    assert moved("f", lambda: set_times((0, omit), (0, omit))) == (False, False)
    set_times((0, omit), (7, 8))
    assert (os.stat("f").st_atime, os.stat("f").st_mtime_ns) == (5, 7 * 10**9 + 8)
    set_times((0, now), (0, omit))
    assert os.stat("f").st_atime > 10**9 and os.stat("f").st_mtime_ns == 7 * 10**9 + 8
    expect(errno.EINVAL, set_times, (0, 10**9), (0, 0))


def appends_from_processes_all_arrive():
    put("log", b"")
    pieces = 300

    def append(who):
        fd = os.open("log", os.O_WRONLY | os.O_APPEND)
        for number in range(pieces):
            os.write(fd, struct.pack("<II", who, number) * 13)
        os._exit(0)
    children = []
    for who in range(4):
        child = os.fork()
        if child == 0:
            append(who)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    seen = content("log")
    assert len(seen) == 4 * pieces * 104
    found = [seen[at:at + 104] for at in range(0, len(seen), 104)]
    assert all(piece == piece[:8] * 13 for piece in found) and len(set(found)) == 4 * pieces


def append_and_positions():
    fd = os.open("f", os.O_RDWR | os.O_CREAT | os.O_APPEND)
    os.write(fd, b"one")
    os.lseek(fd, 0, os.SEEK_SET)
    os.write(fd, b"two")
    assert content("f") == b"onetwo" and os.lseek(fd, 0, os.SEEK_CUR) == 6
    # Linux: pwrite appends where the file is open for that.
    os.pwrite(fd, b"three", 1)
    assert content("f") == b"onetwothree"
    other = os.open("f", os.O_RDWR)
    assert os.pwritev(other, [b"four"], 0, 0x10) == 4
    assert content("f") == b"onetwothreefour"
    os.ftruncate(other, 2)
    os.write(fd, b"!")
    assert content("f") == b"on!"
    expect(errno.EBADF, os.copy_file_range, other, fd, 1, 0, 0)


def exclusive_creation_has_one_winner():
    for turn in range(40):
        children = []
        for _ in range(4):
            child = os.fork()
            if child == 0:
                try:
                    os.open(f"lock{turn}", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
                except FileExistsError:
                    os._exit(1)
                os._exit(0)
            children.append(child)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        assert sorted(codes) == [0, 1, 1, 1], codes
    os.symlink("nowhere", "s")
    expect(errno.EEXIST, lambda: os.open("s", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    os.close(os.open("s", os.O_CREAT | os.O_WRONLY))
    assert os.path.exists("nowhere")


def a_limit_of_file_size_cuts_writes():
    def limited():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        fd = new("f", b"x" * 1000)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
        assert os.pwrite(fd, b"y" * 6000, 0) == 5000
        assert os.fstat(fd).st_size == 5000
        expect(errno.EFBIG, os.pwrite, fd, b"z", 5000)
        expect(errno.EFBIG, os.ftruncate, fd, 5001)
        expect(errno.EFBIG, os.truncate, "f", 5001)
        expect(errno.EFBIG, fallocate, fd, 0, 0, 5001)
        os.ftruncate(fd, 5000)
        os.ftruncate(fd, 10)
        assert content("f") == b"y" * 10
        big = new("big")
        expect(errno.EFBIG, os.copy_file_range, fd, big, 10, 0, 5000)
    alone(limited)

    def killed():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        signal.signal(signal.SIGXFSZ, lambda *_: hits.append(1))
        hits = []
        fd = new("g", b"x" * 100)
        expect(errno.EFBIG, os.write, fd, b"x")
        expect(errno.EFBIG, os.ftruncate, fd, 200)
        time.sleep(TICK)
        assert len(hits) == 2, hits
    alone(killed)


def sizes_too_far():
    fd = new("f")
    far = (1 << 63) - 1
    expect((errno.EFBIG, errno.EINVAL), os.pwrite, fd, b"x", far)
    expect((errno.EFBIG, errno.EINVAL), os.ftruncate, fd, far)
    expect(errno.EINVAL, os.ftruncate, fd, -1)
    expect(errno.EINVAL, os.pread, fd, 1, -1)
    assert os.pread(fd, 1, far - 1) == b""
    assert os.fstat(fd).st_size == 0


def a_write_behind_the_largest_file_is_refused_at_once():
    fd = new("f")
    try:
        expect(errno.EFBIG, os.pwrite, fd, b"x", (1 << 63) - 2)
    finally:
        # Else the next syncfs of anybody tells of it.
        libc.syncfs(fd)


def zeros_beyond_an_end_that_moved():
    fd = new("f", b"A" * 10000)
    # What a mapping writes behind the end is never part of the file.
    Mapping(fd, 12288).put(10000, b"B" * 2288)
    os.fsync(fd)
    os.ftruncate(fd, 12288)
    assert os.pread(fd, 3000, 10000) == bytes(2288)
    os.ftruncate(fd, 5000)
    os.ftruncate(fd, 20000)
    assert os.pread(fd, 20000, 0) == b"A" * 5000 + bytes(15000)
    os.ftruncate(fd, 4999)
    os.pwrite(fd, b"C", 8000)
    assert os.pread(fd, 9000, 0) == b"A" * 4999 + bytes(3001) + b"C"
    os.ftruncate(fd, 5500)
    fallocate(fd, 0, 0, 9000)
    assert os.pread(fd, 9000, 0) == b"A" * 4999 + bytes(4001)


def copies_within_and_across():
    source = new("a", bytes(range(256)) * 400)
    whole = content("a")
    target = new("b")
    assert os.copy_file_range(source, target, 1 << 20, 1000, 500) == len(whole) - 1000
    assert content("b") == bytes(500) + whole[1000:]
    assert os.copy_file_range(source, target, 100, len(whole), 0) == 0
    assert os.copy_file_range(source, target, 100, len(whole) + 5000, 0) == 0
    assert os.copy_file_range(source, source, 1000, 0, 50000) == 1000
    assert content("a")[50000:51000] == whole[:1000]
    expect(errno.EINVAL, os.copy_file_range, source, source, 5000, 0, 4000)
    read = os.open("b", os.O_RDONLY)
    expect(errno.EBADF, os.copy_file_range, source, read, 10, 0, 0)
    write = os.open("a", os.O_WRONLY)
    expect(errno.EBADF, os.copy_file_range, write, target, 10, 0, 0)
    expect(errno.EISDIR, os.copy_file_range, os.open(".", os.O_RDONLY), target, 10, 0, 0)
    os.mkfifo("p")
    expect(errno.EINVAL, os.copy_file_range, os.open("p", os.O_RDWR), target, 10)
    expect((errno.EOVERFLOW, errno.EFBIG), os.copy_file_range, source, target, 100, 0, (1 << 63) - 50)
    out = os.open("/dev/null", os.O_WRONLY)
    expect(errno.EINVAL, os.copy_file_range, source, out, 10, 0)


def copies_from_another_filesystem():
    with open("/dev/shm/probe-copy", "wb+") as other:
        os.unlink("/dev/shm/probe-copy")
        other.write(b"elsewhere" * 1000)
        other.flush()
        fd = new("f")
        try:
            assert os.copy_file_range(other.fileno(), fd, 9000, 0, 0) == 9000
            assert content("f") == b"elsewhere" * 1000
        except OSError as e:
            assert e.errno == errno.EXDEV, e
        other.seek(0)
        target = new("g")
        assert os.sendfile(target, other.fileno(), 0, 9000) == 9000
        assert content("g") == b"elsewhere" * 1000


def sendfile_and_splice():
    fd = new("f", b"0123456789" * 5000)
    here, there = os.pipe()
    assert os.splice(fd, there, 10000, 5) == 10000
    assert os.read(here, 10000) == (b"0123456789" * 5000)[5:10005]
    target = new("g")
    os.write(there, b"piped")
    assert os.splice(here, target, 5, offset_dst=4093) == 5
    assert content("g") == bytes(4093) + b"piped"
    assert os.sendfile(there, fd, 49999, 100) == 1
    assert os.sendfile(there, fd, 60000, 100) == 0
    late = os.open("g", os.O_WRONLY | os.O_APPEND)
    os.write(there, b"x")
    expect(errno.EINVAL, lambda: os.splice(here, late, 5))


def clones_are_made_or_refused():
    source = new("a", b"whole" * 10000)
    target = new("b")
    try:
        fcntl.ioctl(target, 0x40049409, source)
    except OSError as e:
        assert e.errno in (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.EXDEV), e
        assert content("b") == b""
    else:
        assert content("b") == b"whole" * 10000


def direct_and_cached_io_agree():
    fd = new("f", b"c" * 65536)
    direct = os.open("f", os.O_RDWR | os.O_DIRECT)
    space = aligned(4096, 68)
    os.pwrite(fd, b"not synced", 8192)
    got = mmap.mmap(-1, 4096)
    assert os.preadv(direct, [got], 8192) == 4096 and got[:10] == b"not synced"
    assert os.pwritev(direct, [space], 8192) == 4096
    assert os.pread(fd, 4096, 8192) == b"D" * 4096
    with mmap.mmap(fd, 65536) as mapped:
        assert mapped[8192:12288] == b"D" * 4096
        mapped[8192:8202] = b"by the map"
        assert os.preadv(direct, [got], 8192) == 4096 and got[:10] == b"by the map"
        os.pwritev(direct, [space], 4096)
        assert mapped[4096:8192] == b"D" * 4096
    # At and behind the end.
    assert os.preadv(direct, [got], 65536) == 0 and os.preadv(direct, [got], 1 << 30) == 0
    os.ftruncate(fd, 5000)
    assert os.preadv(direct, [got], 4096) == 904
    assert os.pwritev(direct, [space], 131072) == 4096 and os.fstat(fd).st_size == 135168
    assert os.pread(fd, 8192, 65536) == bytes(8192)


def direct_writes_from_a_map_of_the_same_file():
    fd = new("f", b"q" * 16384)
    direct = os.open("f", os.O_RDWR | os.O_DIRECT)
    with mmap.mmap(fd, 16384) as mapped:
        assert os.pwritev(direct, [memoryview(mapped)[:4096]], 8192) == 4096
        got = memoryview(mapped)[4096:8192]
        os.pwrite(fd, b"r" * 4096, 0)
        assert os.preadv(direct, [got], 0) == 4096
        assert mapped[4096:8192] == b"r" * 4096
        got.release()


def direct_appends_grow_without_gaps():
    fd = new("f")
    wrong, done = [], threading.Event()

    def look():
        reader = os.open("f", os.O_RDONLY)
        while not done.is_set():
            size = os.fstat(reader).st_size
            if size and os.pread(reader, 4096, size - 4096) != b"G" * 4096:
                wrong.append(size)
    thread = threading.Thread(target=look)
    thread.start()
    direct = os.open("f", os.O_WRONLY | os.O_DIRECT | os.O_APPEND)
    space = aligned(4096, ord("G"))
    for _ in range(300):
        os.writev(direct, [space])
    done.set()
    thread.join()
    assert not wrong and os.fstat(fd).st_size == 300 * 4096


def reads_and_writes_of_vectors():
    fd = new("f")
    many = [bytes([n % 256]) * (n % 7) for n in range(1024)]
    assert os.writev(fd, many) == sum(map(len, many))
    assert content("f") == b"".join(many)
    expect(errno.EINVAL, os.writev, fd, [b"x"] * 1025)
    got = [bytearray(3), bytearray(0), bytearray(5000)]
    assert os.preadv(fd, got, 0) == len(b"".join(many)) if len(b"".join(many)) < 5003 else True
    assert os.pwritev(fd, [b"sync"], 0, os.RWF_DSYNC) == 4
    try:
        os.preadv(fd, got, 0, os.RWF_NOWAIT)
    except OSError as e:
        assert e.errno in (errno.EAGAIN, errno.EOPNOTSUPP), e
    expect(errno.EOPNOTSUPP, os.preadv, fd, got, 0, 0x4000)


def a_bad_buffer_is_efault():
    fd = new("f", b"x" * 9000)
    bad = mmap.mmap(-1, 4096, mmap.MAP_PRIVATE, mmap.PROT_READ)
    place = ctypes.c_void_p(1)
    libc.pwrite.argtypes = libc.pread.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_long]
    expect(errno.EFAULT, call, libc.pwrite, fd, place, 100, 0)
    expect(errno.EFAULT, call, libc.pread, fd, place, 100, 0)
    direct = os.open("f", os.O_RDWR | os.O_DIRECT)
    expect(errno.EFAULT, call, libc.pwrite, direct, ctypes.c_void_p(4096), 4096, 0)
    expect(errno.EFAULT, call, libc.pread, direct, ctypes.c_void_p(4096), 4096, 0)
    # Half of the buffer is there: what is there is written.
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    base = libc.mmap(None, 8192, 3, 0x22, -1, 0)
    ctypes.memset(base, 65, 8192)
    libc.munmap(base + 4096, 4096)
    wrote = call(libc.pwrite, fd, ctypes.c_void_p(base + 4000), 200, 0)
    assert 0 < wrote <= 96 and os.pread(fd, wrote, 0) == b"A" * wrote
    assert os.pread(fd, 200, wrote) == b"x" * 200 and os.fstat(fd).st_size == 9000
    del bad


def files_opened_for_one_way():
    put("f", b"data")
    write = os.open("f", os.O_WRONLY)
    expect(errno.EBADF, os.pread, write, 1, 0)
    read = os.open("f", os.O_RDONLY)
    expect(errno.EBADF, os.pwrite, read, b"x", 0)
    expect(errno.EINVAL, os.ftruncate, read, 0)
    expect(errno.EISDIR, lambda: os.open(".", os.O_WRONLY))
    expect(errno.EISDIR, os.read, os.open(".", os.O_RDONLY), 10)
    expect(errno.ENOTDIR, lambda: os.open("f", os.O_RDONLY | os.O_DIRECTORY))
    expect(errno.ENOTDIR, os.stat, "f/x")
    path = os.open("f", os.O_PATH)
    expect(errno.EBADF, os.pread, path, 1, 0)
    expect(errno.EBADF, os.fchmod, path, 0o600)
    assert os.fstat(path).st_size == 4 and content(f"/proc/self/fd/{path}") == b"data"
    expect(errno.EISDIR, os.truncate, ".", 0)
    third = os.open("f", 3)
    expect(errno.EBADF, os.pread, third, 1, 0)
    os.close(third)


def open_mode_of_a_new_file_does_not_bind_its_maker():
    fd = os.open("f", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0)
    os.write(fd, b"works")
    assert os.pread(fd, 5, 0) == b"works" and stat.S_IMODE(os.fstat(fd).st_mode) == 0


def nameless_files():
    try:
        fd = os.open(".", os.O_TMPFILE | os.O_RDWR, 0o600)
    except OSError as e:
        assert e.errno == errno.EOPNOTSUPP, e
        raise Skipped("O_TMPFILE: EOPNOTSUPP, as programs expect where it is not offered")
    os.write(fd, b"named later")
    call(libc.linkat, -100, f"/proc/self/fd/{fd}".encode(), -100, b"named", FOLLOW)
    assert content("named") == b"named later"


def syncing_ways():
    fd = new("f", b"x" * 100000)
    call(libc.sync_file_range, fd, ctypes.c_long(0), ctypes.c_long(50000), 7)
    expect(errno.EINVAL, call, libc.sync_file_range, fd, ctypes.c_long(-1), ctypes.c_long(1), 2)
    # The first tells of what any other file lost before, too.
    libc.syncfs(fd)
    os.pwrite(fd, b"y", 0)
    call(libc.syncfs, fd)
    here = os.open(".", os.O_RDONLY)
    os.fsync(here)
    os.fdatasync(here)
    read = os.open("f", os.O_RDONLY)
    os.fsync(read)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    call(libc.readahead, read, ctypes.c_long(0), 65536)
    assert os.pread(read, 10, 99990) == b"x" * 10


def asynchronous_io():
    """The kernel's own queue (io_submit), appended to by two and read back."""
    fd = new("f")
    setup, destroy, getevents, submit = 206, 207, 208, 209
    context = ctypes.c_ulong(0)
    call(libc.syscall, setup, 32, ctypes.byref(context))
    for flags in (0, os.O_DIRECT):
        target = os.open("f", os.O_RDWR | flags)
        buffers = [aligned(4096, 65 + n) for n in range(16)]
        held = [(ctypes.c_char * 4096).from_buffer(buffer) for buffer in buffers]
        for opcode in (1, 0):
            blocks = [ctypes.create_string_buffer(struct.pack("<QIIHhIQQqQII", n, 0, 0, opcode, 0, target,
                      ctypes.addressof(held[n]), 4096, n * 8192, 0, 0, 0)) for n in range(16)]
            pointers = (ctypes.c_void_p * 16)(*map(ctypes.addressof, blocks))
            assert call(libc.syscall, submit, context, ctypes.c_long(16), pointers) == 16
            events = ctypes.create_string_buffer(32 * 16)
            assert call(libc.syscall, getevents, context, ctypes.c_long(16), ctypes.c_long(16), events, None) == 16
            results = [struct.unpack_from("<q", events.raw, 32 * n + 16)[0] for n in range(16)]
            assert results == [4096] * 16, results
            assert all(held[n].raw == bytes([65 + n]) * 4096 for n in range(16))
        assert os.fstat(fd).st_size == 15 * 8192 + 4096
        held.clear()
    call(libc.syscall, destroy, context)


def many_unlinked_files_stay_whole():
    fds = [new(f"f{number}", b"%d" % number) for number in range(500)]
    for number in range(500):
        os.unlink(f"f{number}")
    assert all(os.pread(fd, 10, 0) == b"%d" % number and os.fstat(fd).st_nlink == 0 for number, fd in enumerate(fds))


def a_name_that_is_used_again_is_another_file():
    first = new("f", b"first")
    handle = os.fstat(first).st_ino
    os.unlink("f")
    put("f", b"second")
    assert os.stat("f").st_ino != handle and os.pread(first, 9, 0) == b"first"
    os.close(first)
    for _ in range(200):
        put("again", b"once")
        assert content("again") == b"once"
        os.unlink("again")


def blocks_follow_the_size():
    fd = new("f")
    assert os.fstat(fd).st_blocks * 512 <= 8192
    os.write(fd, b"x" * (1 << 20))
    os.fsync(fd)
    assert 1 << 20 <= os.fstat(fd).st_blocks * 512 <= (1 << 20) + 65536
    os.ftruncate(fd, 1 << 19)
    assert os.fstat(fd).st_blocks * 512 <= (1 << 19) + 65536
    os.ftruncate(fd, 1 << 30)
    assert os.fstat(fd).st_blocks * 512 <= (1 << 19) + 65536


def blocks_of_what_is_not_written_back():
    """A file with data never shows no blocks, also before it is written back: archivers take that for a hole."""
    fd = new("f", b"y" * 100000)
    assert os.fstat(fd).st_blocks > 0


def statfs_and_statx():
    fd = new("f", b"x" * 5000)
    seen = os.statvfs(".")
    assert seen.f_namemax == 255 and seen.f_bfree <= seen.f_blocks and seen.f_bsize > 0
    mask, block, _, links, uid, gid, mode, inode, size = statx("f")[:9]
    assert mask & 0x7ff == 0x7ff and links == 1 and size == 5000 and inode == os.fstat(fd).st_ino
    assert block == os.fstat(fd).st_blksize and stat.S_ISREG(mode) and (uid, gid) == (0, 0)
    expect(errno.EFAULT, call, libc.statx, -100, ctypes.c_void_p(1), 0, 0xfff, ctypes.create_string_buffer(256))
