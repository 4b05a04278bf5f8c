"""Names, directories and what stands in them."""
import ctypes, errno, os, random, stat, threading, time
from kit import *


def rename_over_open_keeps_the_old_file():
    fd = new("old", b"old content")
    put("new", b"new content")
    os.rename("new", "old")
    seen = os.fstat(fd)
    assert seen.st_nlink == 0 and os.pread(fd, 50, 0) == b"old content" and content("old") == b"new content"
    os.pwrite(fd, b"OLD", 0)
    fallocate(fd, 0, 0, 9000)
    assert os.fstat(fd).st_size == 9000 and os.pread(fd, 3, 0) == b"OLD"


def rename_errors():
    os.makedirs("a/b/c")
    os.makedirs("full/x")
    put("f")
    expect(errno.EINVAL, os.rename, "a", "a/b/c/d")
    expect((errno.ENOTEMPTY, errno.EEXIST), os.rename, "a", "full")
    expect(errno.ENOTDIR, os.rename, "a", "f")
    expect(errno.EISDIR, os.rename, "f", "a")
    expect(errno.ENOENT, os.rename, "none", "g")
    expect(errno.ENOTDIR, os.rename, "f/x", "g")
    expect((errno.EBUSY, errno.EINVAL), os.rename, "a/.", "g")
    expect((errno.EBUSY, errno.EINVAL, errno.ENOTEMPTY), os.rename, "f", "a/..")
    expect(errno.ENAMETOOLONG, os.rename, "f", "n" * 256)
    os.link("f", "same")
    os.rename("f", "same")
    assert os.path.exists("f") and os.path.exists("same")


def rename_flags():
    put("a", b"a")
    put("b", b"b")
    os.mkdir("d")
    put("d/in")
    expect(errno.EEXIST, renameat2, "a", "b", 1)
    expect(errno.EEXIST, renameat2, "a", "a", 1)
    expect(errno.ENOENT, renameat2, "a", "none", 2)
    expect(errno.EINVAL, renameat2, "a", "b", 3)
    expect(errno.EINVAL, renameat2, "a", "b", 8)
    expect(errno.EINVAL, renameat2, "a", "b", 6)
    renameat2("a", "b", 2)
    assert content("a") == b"b" and content("b") == b"a"
    renameat2("a", "d", 2)
    assert os.path.isdir("a") and os.path.exists("a/in") and content("d") == b"b"
    renameat2("d", "moved", 4)
    seen = os.lstat("d")
    assert stat.S_ISCHR(seen.st_mode) and seen.st_rdev == 0 and content("moved") == b"b"
    expect(errno.EINVAL, renameat2, "a", "a/in", 2)


def rename_moves_link_counts_and_times():
    os.makedirs("one/sub")
    os.mkdir("two")
    links = os.stat("one").st_nlink, os.stat("two").st_nlink
    # btrfs counts no links of directories.
    counted = links[0] > links[1]
    assert moved("one", lambda: os.rename("one/sub", "two/sub")) == (True, True)
    if counted:
        assert os.stat("one").st_nlink == 2 and os.stat("two").st_nlink == 3
    assert moved("two", lambda: os.rename("two/sub", "two/other")) == (True, True)
    put("f")
    assert moved("f", lambda: os.rename("f", "g") or os.rename("g", "f")) == (False, True)


def rename_parent_of_moved_directory_is_right():
    os.makedirs("a/dir")
    os.mkdir("b")
    inside = os.open("a/dir", os.O_RDONLY)
    os.rename("a/dir", "b/dir")
    assert os.stat("..", dir_fd=inside).st_ino == os.stat("b").st_ino
    os.close(inside)


def link_and_unlink_times():
    put("f")
    os.link("f", "g")
    assert moved("f", lambda: os.link("f", "h")) == (False, True)
    assert moved("f", lambda: os.unlink("h")) == (False, True)
    assert moved(".", lambda: os.unlink("g")) == (True, True)
    assert moved(".", lambda: os.symlink("x", "s")) == (True, True)
    assert moved(".", lambda: os.mkdir("d")) == (True, True)
    assert moved(".", lambda: os.rmdir("d")) == (True, True)
    assert moved(".", lambda: os.mkfifo("p")) == (True, True)
    fd = os.open("f", os.O_RDONLY)
    before = os.fstat(fd).st_ctime_ns
    time.sleep(TICK)
    os.unlink("f")
    seen = os.fstat(fd)
    assert seen.st_ctime_ns > before and seen.st_nlink == 0
    other = os.open("p", os.O_PATH)
    os.unlink("p")
    assert os.fstat(other).st_nlink == 0


def link_errors():
    put("f")
    os.mkdir("d")
    os.symlink("f", "s")
    expect(errno.EPERM, os.link, "d", "e")
    expect(errno.EEXIST, os.link, "f", "s")
    expect(errno.ENOENT, os.link, "none", "x")
    os.link("s", "t", follow_symlinks=False)
    assert os.readlink("t") == "f" and os.lstat("t").st_nlink == 2
    fd = os.open("f", os.O_RDONLY)
    os.unlink("f")
    expect(errno.ENOENT, call, libc.linkat, -100, f"/proc/self/fd/{fd}".encode(), -100, b"back", FOLLOW)
    os.close(fd)
    expect(errno.EXDEV, os.link, "t", "/dev/shm/probe-link")


def removal_errors():
    os.makedirs("d/e")
    put("f")
    os.symlink("d", "s")
    expect((errno.EISDIR, errno.EPERM), os.unlink, "d")
    expect(errno.ENOTDIR, os.rmdir, "f")
    expect(errno.ENOTDIR, os.rmdir, "s")
    expect((errno.ENOTEMPTY, errno.EEXIST), os.rmdir, "d")
    expect(errno.EINVAL, os.rmdir, "d/e/.")
    expect((errno.ENOTEMPTY, errno.EEXIST), os.rmdir, "d/e/..")
    expect(errno.ENOTDIR, os.unlink, "f/")
    expect(errno.EEXIST, os.mkdir, "d/")
    expect(errno.EEXIST, os.mkdir, "s")
    expect(errno.ENOTDIR, os.mkdir, "f/x")
    os.mkdir("with-slash/")
    expect(errno.EISDIR, lambda: os.open("new/", os.O_CREAT | os.O_WRONLY))
    expect(errno.ENOTDIR, os.listdir, "f")


def symbolic_link_targets():
    for length in (1, 2, 59, 60, 61, 100, 1000, 3000):
        target = "t" * length
        os.symlink(target, f"s{length}")
        assert os.readlink(f"s{length}") == target and os.lstat(f"s{length}").st_size == length
    os.symlink("loop", "loop")
    expect(errno.ELOOP, os.stat, "loop")
    expect(errno.ELOOP, lambda: os.open("s1", os.O_RDONLY | os.O_NOFOLLOW))
    expect(errno.ENOENT, os.symlink, "", "empty")
    expect(errno.EINVAL, os.readlink, ".")
    at = os.open("s59", os.O_PATH | os.O_NOFOLLOW)
    out = ctypes.create_string_buffer(100)
    assert call(libc.readlinkat, at, b"", out, 10) == 10 and out.raw[:10] == b"t" * 10
    os.close(at)


def names_of_any_bytes():
    names = [b"\xff\xfe", b"\xc3\x28", b"line\nbreak", b" ", b"...", b"-rf", b"\x01", "\u00e9".encode(), "e\u0301".encode(),
             b"A", b"a", "\U0001f980".encode(), b"x" * 255, "\u00df".encode() * 127]
    for name in names:
        with open(name, "wb") as held:
            held.write(name)
    assert sorted(os.listdir(b".")) == sorted(names)
    for name in names:
        assert content(name) == name
    expect(errno.ENAMETOOLONG, os.stat, b"x" * 256)


def nodes_of_all_kinds():
    os.mknod("c", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    os.mknod("big", 0o600 | stat.S_IFBLK, os.makedev(4095, 1048575))
    os.mknod("p", 0o600 | stat.S_IFIFO)
    os.mknod("s", 0o600 | stat.S_IFSOCK)
    os.mknod("f", 0o600 | stat.S_IFREG)
    assert os.lstat("c").st_rdev == os.makedev(1, 3) and os.lstat("big").st_rdev == os.makedev(4095, 1048575)
    for name, kind in (("c", stat.S_ISCHR), ("big", stat.S_ISBLK), ("p", stat.S_ISFIFO), ("s", stat.S_ISSOCK), ("f", stat.S_ISREG)):
        assert kind(os.lstat(name).st_mode) and os.lstat(name).st_nlink == 1
    expect(errno.ENXIO, lambda: os.open("s", os.O_RDWR))
    expect(errno.ENXIO, lambda: os.open("p", os.O_WRONLY | os.O_NONBLOCK))
    expect((errno.EPERM, errno.EINVAL), os.mknod, "d", 0o600 | stat.S_IFDIR)
    assert os.lstat("c").st_size == 0 and os.lstat("p").st_blocks == 0
    with os.scandir(".") as entries:
        kinds = {entry.name: (entry.is_file(), entry.is_symlink()) for entry in entries}
    assert kinds["f"] == (True, False) and kinds["p"] == (False, False)


def sockets_and_fifos_work():
    import socket
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind("sock")
        server.listen()
        client.connect("sock")
        conn, _ = server.accept()
        client.send(b"hello")
        assert conn.recv(10) == b"hello"
        conn.close()
    os.mkfifo("fifo")
    read = os.open("fifo", os.O_RDONLY | os.O_NONBLOCK)
    write = os.open("fifo", os.O_WRONLY)
    os.write(write, b"through")
    assert os.read(read, 10) == b"through"
    os.close(read), os.close(write)


def sticky_directories():
    os.chmod(".", 0o1777)
    put("root-file", mode=0o666)
    os.mkdir("root-dir", 0o777)

    def stranger():
        expect((errno.EPERM, errno.EACCES), os.unlink, "root-file")
        expect((errno.EPERM, errno.EACCES), os.rename, "root-file", "mine")
        expect((errno.EPERM, errno.EACCES), os.rmdir, "root-dir")
        put("own")
        expect((errno.EPERM, errno.EACCES), os.rename, "own", "root-file")
        os.rename("own", "own2")
        os.unlink("own2")
    as_user(stranger)


def set_group_id_directories():
    os.mkdir("d", 0o777)
    os.chown("d", 0, 777)
    os.chmod("d", 0o2777)

    def stranger():
        os.mkdir("d/sub")
        put("d/f")
        os.mkfifo("d/p")
        os.symlink("x", "d/s")
        fd = os.open("d/x", os.O_CREAT | os.O_RDWR, 0o2775)
        seen = os.fstat(fd)
        # Not a member of the group: the bit would give its rights away.
        assert seen.st_gid == 777 and not seen.st_mode & stat.S_ISGID, oct(seen.st_mode)
        os.close(fd)
        os.chmod("d/x", 0o2775)
        assert not os.stat("d/x").st_mode & stat.S_ISGID
    as_user(stranger)
    for name in ("sub", "f", "p", "s"):
        assert os.lstat(f"d/{name}").st_gid == 777, name
    assert os.stat("d/sub").st_mode & stat.S_ISGID and not os.stat("d/f").st_mode & stat.S_ISGID

    def member():
        fd = os.open("d/y", os.O_CREAT | os.O_RDWR, 0o2775)
        assert os.fstat(fd).st_mode & stat.S_ISGID
    as_user(member, groups=[777])


def telldir_and_seekdir():
    libc.opendir.restype = libc.readdir64.restype = libc.readdir.restype = ctypes.c_void_p
    libc.telldir.restype = ctypes.c_long
    libc.telldir.argtypes = libc.closedir.argtypes = libc.rewinddir.argtypes = [ctypes.c_void_p]
    libc.readdir64.argtypes = [ctypes.c_void_p]
    libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]
    for number in range(500):
        put(f"entry-{number}", b"")

    def following(handle):
        at = libc.readdir64(handle)
        return ctypes.string_at(at + 19) if at else None
    handle = libc.opendir(b".")
    seen = []
    while True:
        place = libc.telldir(handle)
        name = following(handle)
        if name is None:
            break
        seen.append((place, name))
    assert len(seen) == 502 and len({place for place, _ in seen}) == 502
    random.Random(1).shuffle(seen)
    for place, name in seen:
        libc.seekdir(handle, place)
        assert following(handle) == name
    # An entry made since is found after the beginning is taken again, and one that went is not.
    os.unlink("entry-7")
    put("late", b"")
    libc.rewinddir(handle)
    names = set(iter(lambda: following(handle), None))
    assert b"late" in names and b"entry-7" not in names
    libc.closedir(handle)


def listing_ends_while_names_are_renamed():
    for number in range(3000):
        put(f"f{number}", b"")
    renamed = 0
    with os.scandir(".") as entries:
        for entry in entries:
            renamed += 1
            assert renamed < 50000, "the listing does not end"
            os.rename(entry.name, "tmp")
            os.rename("tmp", entry.name)
    assert len(os.listdir(".")) == 3000


def listing_while_all_goes():
    for number in range(2000):
        put(f"f{number}", b"")
    count = 0
    with os.scandir(".") as entries:
        for entry in entries:
            os.unlink(entry.name)
            count += 1
    assert count == 2000 and os.listdir(".") == []


def a_second_listing_sees_what_came_between():
    fd = os.open(".", os.O_RDONLY)
    for turn in range(50):
        put(f"f{turn}", b"")
        assert len(os.listdir(fd)) == turn + 1
    for turn in range(50):
        os.unlink(f"f{turn}")
        assert len(os.listdir(fd)) == 49 - turn
    os.close(fd)


def listing_from_threads():
    for number in range(300):
        put(f"f{number}", b"")
    wrong = []

    def list_often():
        for _ in range(40):
            names = os.listdir(".")
            if len(set(names)) != len(names) or sum(name.startswith("f") for name in names) != 300:
                wrong.append(len(names))

    def churn():
        for turn in range(400):
            put(f"z{turn}", b"")
            os.unlink(f"z{turn}")
    threads = [threading.Thread(target=act) for act in (list_often, list_often, churn, churn_in("."))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong, wrong


def churn_in(where):
    def act():
        for turn in range(400):
            os.mkdir(f"{where}/y{turn}")
            os.rmdir(f"{where}/y{turn}")
    return act


def a_removed_directory_takes_nothing_new():
    os.mkdir("gone")
    fd = os.open("gone", os.O_RDONLY)
    os.rmdir("gone")
    assert os.fstat(fd).st_nlink == 0 and os.listdir(fd) == []
    expect(errno.ENOENT, lambda: os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    expect(errno.ENOENT, lambda: os.mkdir("d", dir_fd=fd))
    expect(errno.ENOENT, lambda: os.symlink("t", "s", dir_fd=fd))
    put("f")
    expect(errno.ENOENT, lambda: os.link("f", "l", dst_dir_fd=fd))
    expect(errno.ENOENT, lambda: os.rename("f", "r", dst_dir_fd=fd))
    os.close(fd)


def a_working_directory_that_moves():
    os.makedirs("a/b")
    os.chdir("a/b")
    os.rename("../../a", "../../z")
    assert os.getcwd().endswith("/z/b")
    os.chdir("../..")
    os.mkdir("w")
    os.chdir("w")
    os.rmdir("../w")
    expect(errno.ENOENT, os.getcwd)
    expect(errno.ENOENT, lambda: os.open("f", os.O_CREAT | os.O_WRONLY))
