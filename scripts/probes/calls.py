"""Calls that programs seldom make, and the edges of those that they make often: opening, walking paths, asking, space."""
import ctypes, errno, fcntl, mmap, os, socket, stat, struct, time
from kit import *

OPENAT2, FACCESSAT2, STATX = 437, 439, 332
NO_XDEV, NO_MAGICLINKS, NO_SYMLINKS, BENEATH, IN_ROOT, CACHED = 1, 2, 4, 8, 16, 32
FIGETBSZ, FIONREAD, FIBMAP, FIEMAP, DEDUPE, CLONE_RANGE = 2, 0x541b, 1, 0xc020660b, 0xc0189436, 0x4020940d
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND = 1, 2, 4, 8, 32, 4096
HOW_NOWAIT, HOW_DSYNC, HOW_APPEND, HOW_UNKNOWN = 8, 2, 16, 0x40000000


def openat2(path, flags, resolve=0, mode=0, at=-100):
    how = struct.pack("<QQQ", flags, mode, resolve)
    return call(libc.syscall, OPENAT2, at, os.fsencode(path), how, len(how))


def walks_that_are_restricted():
    os.makedirs("d/e")
    put("d/e/f", b"deep")
    os.symlink("../d", "d/back")
    os.symlink("e", "d/near")
    os.symlink("/", "d/root")
    here = os.open("d", os.O_RDONLY | os.O_DIRECTORY)
    for path, resolve in (("e/f", BENEATH), ("near/f", BENEATH), ("e/../e/f", BENEATH), ("/e/f", IN_ROOT), ("root/e/f", IN_ROOT),
                          ("../../e/f", IN_ROOT), ("e/f", NO_SYMLINKS | NO_XDEV | NO_MAGICLINKS)):
        fd = openat2(path, os.O_RDONLY, resolve, at=here)
        assert os.read(fd, 9) == b"deep", path
        os.close(fd)
    expect(errno.EXDEV, openat2, "../d/e/f", os.O_RDONLY, BENEATH, 0, here)
    expect(errno.EXDEV, openat2, "back/e/f", os.O_RDONLY, BENEATH, 0, here)
    expect(errno.EXDEV, openat2, "root", os.O_RDONLY, BENEATH, 0, here)
    expect(errno.ELOOP, openat2, "near/f", os.O_RDONLY, NO_SYMLINKS, 0, here)
    expect(errno.EINVAL, openat2, "e/f", os.O_RDONLY, 1 << 20, 0, here)
    expect(errno.EINVAL, openat2, "e/f", os.O_RDONLY, 0, 0o600, here)
    fd = openat2("made", os.O_RDWR | os.O_CREAT | os.O_EXCL, BENEATH, 0o640, here)
    assert os.fstat(fd).st_mode & 0o7777 == 0o640


def opening_in_odd_ways():
    os.mkdir("d")
    put("f", b"x")
    os.symlink("f", "l")
    os.symlink("none", "dangling")
    expect(errno.EISDIR, os.open, "d", os.O_RDWR)
    expect(errno.EISDIR, os.open, "d", os.O_RDONLY | os.O_CREAT)
    expect(errno.EISDIR, os.open, "d", os.O_RDONLY | os.O_TRUNC)
    expect(errno.ENOTDIR, os.open, "f", os.O_RDONLY | os.O_DIRECTORY)
    expect(errno.ELOOP, os.open, "l", os.O_RDONLY | os.O_NOFOLLOW)
    expect(errno.EEXIST, os.open, "dangling", os.O_RDWR | os.O_CREAT | os.O_EXCL)
    expect(errno.ELOOP, os.open, "dangling", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW)
    os.close(os.open("dangling", os.O_RDWR | os.O_CREAT, 0o600))
    assert os.stat("none").st_size == 0
    expect(errno.EISDIR, os.open, "new/", os.O_RDWR | os.O_CREAT)
    expect(errno.ENOTDIR, os.open, "f/", os.O_RDONLY)
    expect(errno.ENXIO, lambda: (os.mkfifo("p"), os.open("p", os.O_WRONLY | os.O_NONBLOCK)))
    with socket.socket(socket.AF_UNIX) as held:
        held.bind("s")
    expect(errno.ENXIO, os.open, "s", os.O_RDONLY)
    fd = os.open("f", 3)  # For ioctls alone.
    expect(errno.EBADF, os.read, fd, 1)
    expect(errno.EBADF, os.write, fd, b"x")


def paths_with_slashes_and_dots():
    os.makedirs("d/e")
    put("f")
    os.symlink("d", "l")
    for act in (os.stat, os.unlink, os.readlink, lambda path: os.rename(path, "g"), lambda path: os.chmod(path, 0o600)):
        expect((errno.ENOTDIR, errno.EINVAL), act, "f/")
    assert stat.S_ISDIR(os.lstat("l/").st_mode) and stat.S_ISLNK(os.lstat("l").st_mode)
    expect(errno.ENOTDIR, os.rmdir, "l")
    expect(errno.ENOTDIR, os.rmdir, "l/")
    expect(errno.EINVAL, os.rmdir, "d/.")
    expect(errno.ENOTEMPTY, os.rmdir, "d/e/..")
    expect(errno.EBUSY, os.rename, "d/.", "g")
    expect(errno.ENOENT, os.stat, "")
    expect(errno.ENOENT, os.link, "f", "g/")
    os.mkdir("made/")
    os.rename("made/", "other/")
    assert os.path.isdir("other") and os.stat("d//e///.").st_ino == os.stat("d/e").st_ino


def chains_of_links_end():
    put("link0", b"end")
    for n in range(41):
        os.symlink(f"link{n}", f"link{n + 1}")
    assert content("link40") == b"end"
    expect(errno.ELOOP, content, "link41")
    os.symlink("self", "self")
    expect(errno.ELOOP, os.stat, "self")
    expect(errno.ELOOP, os.open, "self/x", os.O_RDONLY | os.O_CREAT)
    expect(errno.ENAMETOOLONG, os.stat, "x/" * 2048)
    expect(errno.ENAMETOOLONG, os.symlink, "x", "n" * 256)


def descriptors_without_access():
    """O_PATH: what one is good for, and that it is good for nothing else."""
    put("f", b"held", 0o600)
    os.symlink("f", "l")
    fd = os.open("f", os.O_PATH)
    for act in (lambda: os.read(fd, 1), lambda: os.write(fd, b"x"), lambda: os.fchmod(fd, 0o777), lambda: os.ftruncate(fd, 0),
                lambda: os.fsync(fd), lambda: os.setxattr(fd, "user.a", b"x"), lambda: fcntl.flock(fd, fcntl.LOCK_SH),
                lambda: mmap.mmap(fd, 4, mmap.MAP_SHARED, mmap.PROT_READ)):
        expect(errno.EBADF, act)
    assert os.fstat(fd).st_size == 4 and content(f"/proc/self/fd/{fd}") == b"held"
    os.chmod(f"/proc/self/fd/{fd}", 0o640)
    os.unlink("f")
    assert os.fstat(fd).st_nlink == 0 and content(f"/proc/self/fd/{fd}") == b"held"
    link = os.open("l", os.O_PATH | os.O_NOFOLLOW)
    assert os.readlink("", dir_fd=link) == "f" and stat.S_ISLNK(os.fstat(link).st_mode)


def links_to_open_files():
    AT_EMPTY_PATH, AT_FOLLOW = 0x1000, 0x400
    fd = new("f", b"kept")
    linked = lambda name: call(libc.linkat, fd, b"", -100, name, AT_EMPTY_PATH)
    linked(b"second")
    assert os.fstat(fd).st_nlink == 2
    call(libc.linkat, -100, f"/proc/self/fd/{fd}".encode(), -100, b"third", AT_FOLLOW)
    assert os.fstat(fd).st_nlink == 3 and content("third") == b"kept"
    expect(errno.EEXIST, linked, b"third")
    for name in ("f", "second", "third"):
        os.unlink(name)
    # A file that has no name any more gets none.
    expect(errno.ENOENT, linked, b"again")
    os.symlink("f", "l")
    os.link("l", "m", follow_symlinks=False)
    assert os.lstat("l").st_nlink == 2 and os.readlink("m") == "f"


def asking_with_statx():
    fd = new("f", b"x" * 5000)
    raw = ctypes.create_string_buffer(256)
    ask = lambda at, path, flags, mask: call(libc.syscall, STATX, at, path, flags, mask, raw)
    for flags in (0, 0x2000, 0x4000):  # As it is; forced; from the cache.
        ask(fd, b"", 0x1000 | flags, 0x7ff)
        mask, _, _, links, uid, gid, mode, _, inode, size = struct.unpack_from("<IIQIIIHHQQ", raw.raw)
        seen = os.fstat(fd)
        assert mask & 0x7ff == 0x7ff, hex(mask)
        assert (links, uid, gid, mode, inode, size) == (1, 0, 0, seen.st_mode, seen.st_ino, 5000), flags
    expect(errno.EINVAL, ask, fd, b"", 0x1000 | 0x6000, 0x7ff)
    expect(errno.EINVAL, ask, fd, b"", 0x1000, 1 << 31)
    expect(errno.ENOENT, ask, -100, b"", 0, 0x7ff)
    expect(errno.ENOTDIR, ask, -100, b"f/x", 0, 0x7ff)
    ask(-100, b".", 0, 0x7ff)
    assert struct.unpack_from("<II", raw.raw, 136) == (os.major(seen.st_dev), os.minor(seen.st_dev))


def asking_what_one_may():
    put("f", b"x", 0o640)
    put("program", b"#!/bin/true\n", 0o755)
    os.chown("f", USER, GROUP)
    os.mkdir("closed", 0o700)
    put("closed/f")

    def check():
        may = lambda path, mode, flags=0: call(libc.syscall, FACCESSAT2, -100, os.fsencode(path), mode, flags)
        may("f", os.R_OK | os.W_OK)
        may("program", os.X_OK, 0x200)
        expect(errno.EACCES, may, "f", os.X_OK)
        expect(errno.EACCES, may, "program", os.W_OK)
        expect(errno.EACCES, may, "closed/f", os.F_OK)
        expect(errno.ENOENT, may, "none", os.F_OK)
        expect(errno.EINVAL, may, "f", 8)
    as_user(check)
    assert os.access("closed/f", os.W_OK) and not os.access("f", os.X_OK)


def seeking_at_the_edges():
    fd = new("f")
    seek = lambda offset, how: os.lseek(fd, offset, how)
    for how in (os.SEEK_DATA, os.SEEK_HOLE):
        expect(errno.ENXIO, seek, 0, how)
        expect((errno.ENXIO, errno.EINVAL), seek, -1, how)
    os.write(fd, b"x")
    assert (seek(0, os.SEEK_DATA), seek(0, os.SEEK_HOLE)) == (0, 1)
    expect(errno.ENXIO, seek, 1, os.SEEK_HOLE)
    expect(errno.EINVAL, seek, -2, os.SEEK_END)
    expect(errno.EINVAL, seek, 0, 9)
    assert seek(0, os.SEEK_CUR) == 1
    assert seek(1 << 40, os.SEEK_SET) == 1 << 40 and os.read(fd, 1) == b"" and os.fstat(fd).st_size == 1
    os.ftruncate(fd, 1 << 20)
    os.pwrite(fd, b"y", (1 << 20) - 1)
    assert seek(4096, os.SEEK_DATA) == (1 << 20) - 4096 and seek((1 << 20) - 1, os.SEEK_HOLE) == 1 << 20


def vectors_with_flags():
    fd = new("f", b"0123456789")
    os.fsync(fd)
    assert os.pwritev(fd, [b"ab", b"cd"], 3, HOW_DSYNC) == 4 and content("f") == b"012abcd789"
    # Appends wherever it is told to write, and leaves the position.
    os.lseek(fd, 2, os.SEEK_SET)
    assert os.pwritev(fd, [b"end"], 0, HOW_APPEND) == 3 and content("f") == b"012abcd789end"
    assert os.lseek(fd, 0, os.SEEK_CUR) == 2
    expect((errno.EOPNOTSUPP, errno.EINVAL), os.pwritev, fd, [b"x"], 0, HOW_UNKNOWN)
    space = bytearray(4)
    expect(errno.EINVAL, os.preadv, fd, [space], -2)
    assert os.preadv(fd, [], 0) == 0 and os.preadv(fd, [space], 13) == 0
    assert os.readv(fd, [bytearray(1)] * 1024) == 11
    expect(errno.EINVAL, os.readv, fd, [bytearray(1)] * 1025)


def reads_that_do_not_wait():
    """Of what the kernel has they give at once, and else say so."""
    fd, space = new("f", b"0123456789"), bytearray(4)
    assert os.pread(fd, 4, 3) == b"3456"
    try:
        assert os.preadv(fd, [space], 3, HOW_NOWAIT) == 4 and space == b"3456"
    except BlockingIOError:
        pass


def listings_into_small_buffers():
    for n in range(30):
        put("n" * 100 + str(n))
    fd = os.open(".", os.O_RDONLY)
    raw = ctypes.create_string_buffer(4096)
    expect(errno.EINVAL, call, libc.syscall, 217, fd, raw, 16)
    names, length = [], 1
    while length:
        length = call(libc.syscall, 217, fd, raw, 160)
        at = 0
        while at < length:
            size = struct.unpack_from("<H", raw.raw, at + 16)[0]
            names.append(raw.raw[at + 19:at + size].split(b"\0")[0])
            at += size
    assert len(names) == 32 == len(set(names)), len(names)
    expect(errno.ENOTDIR, call, libc.syscall, 217, new("f"), raw, 4096)
    expect((errno.EISDIR, errno.EINVAL), os.read, fd, 10)
    expect((errno.EINVAL, errno.EBADF), os.ftruncate, fd, 0)
    os.fsync(fd)
    os.mkdir("gone")
    gone = os.open("gone", os.O_RDONLY)
    os.rmdir("gone")
    expect(errno.ENOENT, call, libc.syscall, 217, gone, raw, 4096)


def advice_and_readahead():
    fd = new("f", os.urandom(1 << 20))
    for advice in range(6):
        os.posix_fadvise(fd, 0, 0, advice)
    expect(errno.EINVAL, os.posix_fadvise, fd, 0, 0, 77)
    call(libc.readahead, fd, ctypes.c_long(0), ctypes.c_size_t(65536))
    closed_way = os.open("f", os.O_WRONLY)
    expect(errno.EBADF, call, libc.readahead, closed_way, ctypes.c_long(0), ctypes.c_size_t(4096))
    here, there = os.pipe()
    expect(errno.ESPIPE, os.posix_fadvise, here, 0, 0, 0)
    with mmap.mmap(fd, 1 << 20) as space:
        for advice in (mmap.MADV_WILLNEED, mmap.MADV_RANDOM, mmap.MADV_DONTNEED, mmap.MADV_SEQUENTIAL):
            space.madvise(advice)
        assert space[:] == content("f")
        space.madvise(mmap.MADV_REMOVE, 4096, 8192)
        assert space[4096:12288] == bytes(8192) and content("f")[4096:12288] == bytes(8192)


def syncs_that_are_refused():
    fd = new("f", b"x" * 9000)
    sync = lambda of, at, length, flags: call(libc.sync_file_range, of, ctypes.c_long(at), ctypes.c_long(length), flags)
    sync(fd, 0, 0, 7)
    sync(fd, 4096, 1 << 40, 2)
    expect(errno.EINVAL, sync, fd, 0, 1, 8)
    expect(errno.EINVAL, sync, fd, -1, 1, 2)
    os.mkfifo("p")
    pipe = os.open("p", os.O_RDWR)
    expect(errno.ESPIPE, sync, pipe, 0, 1, 2)
    expect(errno.EINVAL, os.fsync, pipe)
    reader = os.open("f", os.O_RDONLY)
    os.fsync(reader)
    os.fdatasync(reader)
    os.close(reader)
    expect(errno.EBADF, os.fsync, reader)
    call(libc.syncfs, fd)


def questions_by_ioctl():
    fd = new("f", b"x" * 9000)
    os.fsync(fd)
    os.lseek(fd, 1000, os.SEEK_SET)
    ask = lambda number, raw: bytes(fcntl.ioctl(fd, number, raw))
    assert struct.unpack("<i", ask(FIONREAD, bytes(4)))[0] == 8000
    assert struct.unpack("<i", ask(FIGETBSZ, bytes(4)))[0] in (512, 1024, 2048, 4096)
    expect(errno.ENOTTY, fcntl.ioctl, fd, 0x5401, bytes(60))
    expect(errno.ENOTTY, fcntl.ioctl, fd, 0xdead, bytes(4))
    fcntl.ioctl(fd, 0x5451)  # Closes itself on exec.
    assert fcntl.fcntl(fd, fcntl.F_GETFD) == 1


def ranges_that_cannot_be_shared():
    one, two = new("one", b"x" * 65536), new("two", b"y" * 65536)
    unequal = struct.pack("<QQHHI", 0, 4096, 1, 0, 0) + struct.pack("<qQQiI", two, 0, 0, 0, 0)
    try:
        status = struct.unpack_from("<i", fcntl.ioctl(one, DEDUPE, unequal), 24 + 24)[0]
        assert status in (1, -errno.EOPNOTSUPP, -errno.EINVAL), status
    except OSError as e:
        assert e.errno in (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL), e
    for act in (lambda: fcntl.ioctl(two, CLONE_RANGE, struct.pack("<qQQQ", one, 100, 4096, 0)),
                lambda: fcntl.ioctl(two, CLONE_RANGE, struct.pack("<qQQQ", one, 0, 1 << 40, 0))):
        expect((errno.EINVAL, errno.EOPNOTSUPP), act)
    reader = os.open("two", os.O_RDONLY)
    expect((errno.EBADF, errno.EOPNOTSUPP), fcntl.ioctl, reader, CLONE_RANGE, struct.pack("<qQQQ", one, 0, 4096, 0))
    assert content("one") == b"x" * 65536 and content("two") == b"y" * 65536


def copies_that_are_refused():
    fd = new("f", b"x" * 10000)
    copy = os.copy_file_range
    expect(errno.EINVAL, copy, fd, fd, 5000, 0, 4999)
    assert copy(fd, fd, 100, 0, 20000) == 100
    os.ftruncate(fd, 10000)
    os.mkdir("d")
    directory, reader, writer = os.open("d", os.O_RDONLY), os.open("f", os.O_RDONLY), os.open("f", os.O_WRONLY)
    expect(errno.EISDIR, copy, directory, fd, 10)
    expect(errno.EISDIR, copy, fd, directory, 10)
    expect(errno.EBADF, copy, fd, reader, 10, 0, 20)
    expect(errno.EBADF, copy, writer, fd, 10, 0, 20)
    appending = os.open("f", os.O_WRONLY | os.O_APPEND)
    expect(errno.EBADF, copy, reader, appending, 10, 0, 20)
    os.mkfifo("p")
    expect(errno.EINVAL, copy, os.open("p", os.O_RDWR), fd, 10)
    assert copy(fd, new("g"), 10, 20000, 0) == 0
    expect(errno.EINVAL, call, libc.copy_file_range, fd, None, new("h"), None, ctypes.c_size_t(10), 1)


def locks_of_both_kinds_do_not_meet():
    fd, other = new("f", b"x" * 100), os.open("f", os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX)
    fcntl.lockf(other, fcntl.LOCK_EX)
    expect((errno.EAGAIN, errno.EACCES), fcntl.flock, other, fcntl.LOCK_SH | fcntl.LOCK_NB)
    fcntl.flock(fd, fcntl.LOCK_SH)
    fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)
    expect((errno.EAGAIN, errno.EACCES), fcntl.flock, other, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def held():
        mine = os.open("f", os.O_RDWR)
        try:
            fcntl.lockf(mine, fcntl.LOCK_EX | fcntl.LOCK_NB, 10)
        except OSError:
            return
        os._exit(7)
    alone(held)
    # The end of any descriptor of the file ends a process's locks.
    os.close(os.open("f", os.O_RDONLY))
    alone(lambda: fcntl.lockf(os.open("f", os.O_RDWR), fcntl.LOCK_EX | fcntl.LOCK_NB, 10))
    reader = os.open("f", os.O_RDONLY)
    expect(errno.EBADF, fcntl.lockf, reader, fcntl.LOCK_EX)
    expect(errno.EINVAL, fcntl.fcntl, fd, fcntl.F_SETLK, struct.pack("<hh4xqqi4x", fcntl.F_WRLCK, 0, -5, 3, 0))


def times_of_now_and_left_out():
    NOW, OMIT = (1 << 30) - 1, (1 << 30) - 2
    put("f")
    os.chown("f", USER, GROUP)
    os.chmod("f", 0o666)
    os.utime("f", ns=(5_000_000_001, 7_000_000_002))

    def change(*pairs, at=b"f", flags=0):
        call(libc.utimensat, -100, at, struct.pack("<4q", *(n for pair in pairs for n in pair)), flags)
    before = os.stat("f")
    time.sleep(TICK)
    change((0, OMIT), (0, OMIT))
    assert os.stat("f") == before, "nothing was to change"
    change((0, OMIT), (99, 5))
    seen = os.stat("f")
    assert (seen.st_atime_ns, seen.st_mtime_ns) == (5_000_000_001, 99_000_000_005) and seen.st_ctime_ns > before.st_ctime_ns
    stranger = lambda act: as_user(act, 23456, 23456)
    stranger(lambda: change((0, NOW), (0, NOW)))
    stranger(lambda: expect(errno.EPERM, change, (0, NOW), (0, OMIT)))
    stranger(lambda: expect(errno.EPERM, change, (1, 0), (1, 0)))
    stranger(lambda: change((0, OMIT), (0, OMIT)))
    expect(errno.EINVAL, change, (0, 1_000_000_000), (0, 0))
    os.symlink("f", "l")
    change((3, 0), (4, 0), at=b"l", flags=0x100)
    assert os.lstat("l").st_mtime_ns == 4_000_000_000 and os.stat("l").st_mtime_ns > 99_000_000_005


def reading_without_a_trace():
    put("f", b"x", 0o644)
    os.chown("f", USER, GROUP)
    os.utime("f", (1, 1))
    before = os.stat("f").st_atime_ns
    fd = os.open("f", os.O_RDONLY | os.O_NOATIME)
    os.read(fd, 1)
    as_user(lambda: os.read(os.open("f", os.O_RDONLY | os.O_NOATIME), 1))
    assert os.stat("f").st_atime_ns == before
    as_user(lambda: expect(errno.EPERM, os.open, "f", os.O_RDONLY | os.O_NOATIME), 23456, 23456)
    assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NOATIME


def flags_that_change_while_open():
    fd = new("f", b"start")
    fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)
    os.pwrite(fd, b"+", 0)
    os.lseek(fd, 0, os.SEEK_SET)
    os.write(fd, b"end")
    assert content("f") == b"start+end"
    fcntl.fcntl(fd, fcntl.F_SETFL, 0)
    os.pwrite(fd, b"S", 0)
    assert content("f") == b"Start+end"
    fcntl.fcntl(fd, fcntl.F_SETFL, os.O_DIRECT)
    page = aligned(4096, 0x61)
    os.pwrite(fd, page, 0)
    fcntl.fcntl(fd, fcntl.F_SETFL, 0)
    assert content("f") == b"a" * 4096
    second = os.dup(fd)
    os.lseek(fd, 10, os.SEEK_SET)
    assert os.lseek(second, 0, os.SEEK_CUR) == 10


def a_bind_mount_keeps_its_restrictions():
    os.makedirs("d")
    put("d/program", b"#!/bin/sh\nexit 0\n", 0o755)
    os.mknod("d/null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    os.mkdir("m")
    here = os.path.join(os.getcwd(), "m")

    def check():
        call(libc.unshare, 0x20000)
        call(libc.mount, b"none", b"/", None, 0x4000 | 0x40000, None)
        call(libc.mount, b"d", here.encode(), None, MS_BIND, None)
        call(libc.mount, b"", here.encode(), None, MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NODEV | MS_NOSUID | MS_NOEXEC, None)
        expect(errno.EROFS, os.mkdir, "m/x")
        expect(errno.EROFS, os.open, "m/program", os.O_RDWR)
        expect(errno.EROFS, os.setxattr, "m/program", "user.a", b"x")
        expect(errno.EROFS, os.utime, "m/program")
        expect(errno.EACCES, os.open, "m/null", os.O_RDONLY)
        expect(errno.EACCES, os.execv, "m/program", ["program"])
        assert os.statvfs("m").f_flag & 15 == 15, os.statvfs("m").f_flag
        os.mkdir("d/beside")
        assert os.path.isdir("m/beside")
    alone(check)


def a_file_is_watched_by_fanotify():
    put("f", b"x")
    group = call(libc.fanotify_init, 0x2, os.O_RDONLY)  # Not blocking.
    call(libc.fanotify_mark, group, 1, ctypes.c_ulong(0x2 | 0x8 | 0x20), -100, b"f")
    with open("f", "ab") as held:
        held.write(b"y")
    seen, raw = 0, os.read(group, 4096)
    while raw:
        length, _, _, _, mask, fd, _ = struct.unpack_from("<IBBHQii", raw)
        assert os.readlink(f"/proc/self/fd/{fd}").endswith("/f")
        os.close(fd)
        seen, raw = seen | mask, raw[length:]
    assert seen & 0x2a == 0x2a, hex(seen)


def pipes_take_and_give_pages():
    fd = new("f", bytes(range(256)) * 512)
    here, there = os.pipe()
    out, total = new("g"), 0
    while total < 131072:
        moved = os.splice(fd, there, 65536, offset_src=total)
        left = moved
        while left:
            left -= os.splice(here, out, left, offset_dst=total + moved - left)
        total += moved
    assert content("g") == content("f")
    expect(errno.EINVAL, os.splice, fd, out, 100)
    expect(errno.ESPIPE, os.splice, here, out, 1, 0)
    appending = os.open("g", os.O_WRONLY | os.O_APPEND)
    os.write(there, b"x")
    expect(errno.EINVAL, os.splice, here, appending, 1)
    # What is in the pipe stays what it was.
    os.read(here, 1)
    os.splice(fd, there, 4096, offset_src=0)
    kept = os.read(here, 4096)
    assert kept == content("f")[:4096]


def growing_a_mapping():
    fd = new("f", b"x" * 4096)
    space = mmap.mmap(fd, 4096)
    os.ftruncate(fd, 16384)
    space.resize(16384)
    space[12288:12291] = b"end"
    space.flush()
    assert os.pread(fd, 3, 12288) == b"end" and os.fstat(fd).st_size == 16384
    locked = Mapping(fd, 16384)
    call(libc.mlock, ctypes.c_void_p(locked.base), ctypes.c_size_t(16384))
    os.ftruncate(fd, 8192)
    assert locked.get(0, 4) == b"xxxx"
    expect(errno.EACCES, mmap.mmap, os.open("f", os.O_RDONLY), 4096)
    expect((errno.EACCES, errno.EBADF), mmap.mmap, os.open("f", os.O_WRONLY), 4096)
    expect(errno.ENODEV, mmap.mmap, os.open(".", os.O_RDONLY), 4096, mmap.MAP_SHARED, mmap.PROT_READ)
