"""What the probes share: the calls that Python lacks, other users, and saying what is expected."""
import ctypes, errno, mmap, os, struct, time, traceback

libc = ctypes.CDLL(None, use_errno=True)
FOLLOW = 0x400
KEEP, PUNCH, COLLAPSE, ZERO = 1, 2, 8, 16
NOREPLACE, EXCHANGE, WHITEOUT = 1, 2, 4
USER, GROUP = 12345, 12346
# More than the granularity of the kernel's clock for time stamps, in seconds, and than it stands still where the machine's
# processors are taken away for a moment.
TICK = 0.05


class Skipped(Exception):
    """The filesystem is free not to have this."""


def call(function, *args):
    got = function(*args)
    if got < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return got


def fallocate(fd, mode, offset, length):
    call(libc.fallocate, fd, mode, ctypes.c_long(offset), ctypes.c_long(length))


def renameat2(old, new, flags):
    call(libc.renameat2, -100, os.fsencode(old), -100, os.fsencode(new), flags)


def statx(path, mask=0xfff):
    out = ctypes.create_string_buffer(256)
    call(libc.statx, -100, os.fsencode(path), 0x100, mask, out)
    return struct.unpack_from("<IIQIIIHxxQQQQ", out.raw)


def expect(code, act, *args):
    """`act` is refused with this error (or one of these)."""
    codes = code if isinstance(code, tuple) else (code,)
    try:
        got = act(*args)
    except OSError as e:
        assert e.errno in codes, f"{errno.errorcode[e.errno]}, not {[errno.errorcode[c] for c in codes]}"
        return
    raise AssertionError(f"gave {got!r}, not {[errno.errorcode[c] for c in codes]}")


def as_user(act, uid=USER, gid=GROUP, groups=()):
    """Runs `act` in a process of this user; what it raises is raised here."""
    here, there = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups(list(groups))
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
            act()
        except BaseException:
            os.write(there, traceback.format_exc().encode()[-4000:])
            os._exit(1)
        os._exit(0)
    os.close(there)
    with os.fdopen(here, "rb") as said:
        why = said.read().decode()
    os.waitpid(child, 0)
    assert not why, why


def alone(act):
    """Runs `act` in a process of its own, which may be given limits."""
    as_user(act, 0, 0)


def new(path, content=b"", mode=0o644):
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
    os.write(fd, content)
    return fd


def put(path, content=b"x", mode=0o644):
    os.close(new(path, content, mode))


def content(path):
    with open(path, "rb") as held:
        return held.read()


def times(path):
    seen = os.lstat(path)
    return seen.st_mtime_ns, seen.st_ctime_ns


def moved(path, act):
    """Whether `act` moves mtime and ctime of the path."""
    before = times(path)
    time.sleep(TICK)
    act()
    after = times(path)
    return before[0] != after[0], before[1] != after[1]


def aligned(length, fill):
    space = mmap.mmap(-1, length)
    space.write(bytes([fill]) * length)
    return space


class Mapping:
    """A shared mapping that may reach behind the end of the file, which Python's own refuses."""

    def __init__(self, fd, length):
        map_it = libc.mmap
        map_it.restype = ctypes.c_void_p
        map_it.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
        self.base = map_it(None, length, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, fd, 0)
        assert self.base != ctypes.c_void_p(-1).value, os.strerror(ctypes.get_errno())

    def get(self, at, length=1):
        return ctypes.string_at(self.base + at, length)

    def put(self, at, data):
        ctypes.memmove(self.base + at, data, len(data))


def extents(fd):
    size, at, found = os.fstat(fd).st_size, 0, []
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as e:
            assert e.errno == errno.ENXIO
            break
        at = os.lseek(fd, start, os.SEEK_HOLE)
        found.append((start, at))
    return found


