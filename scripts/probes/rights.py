"""Who may do what: modes, owners, set-id bits, access control lists, attributes, flags."""
import ctypes, errno, fcntl, os, shutil, stat, struct, subprocess
from kit import *

SIZE_MAX = 65536


def acl(*entries):
    """The attribute that stands for (tag, permissions, id) entries."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)


OWNER, NAMED_USER, OWNING_GROUP, NAMED_GROUP, MASK, OTHER = 1, 2, 4, 8, 16, 32
ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"


def set_id(path, mode=0o6755, owner=(USER, GROUP)):
    os.chown(path, *owner)
    os.chmod(path, mode)
    assert stat.S_IMODE(os.stat(path).st_mode) == mode


def mode_of(path):
    return stat.S_IMODE(os.stat(path).st_mode)


def set_id_bits_go_with_writes_of_others():
    put("f", b"x" * 9000)
    os.chmod(".", 0o777)

    def doing(act):
        def go():
            fd = os.open("f", os.O_RDWR)
            act(fd)
            os.close(fd)
        return go
    ways = {
        "write": lambda fd: os.pwrite(fd, b"y", 0),
        "append": lambda fd: os.pwrite(fd, b"y", os.fstat(fd).st_size),
        "truncate": lambda fd: os.ftruncate(fd, 100),
        "grow": lambda fd: os.ftruncate(fd, 20000),
        "allocate": lambda fd: fallocate(fd, 0, 0, 30000),
        "punch": lambda fd: fallocate(fd, PUNCH | KEEP, 0, 4096),
        "zero": lambda fd: fallocate(fd, ZERO, 0, 4096),
        "copy": lambda fd: os.copy_file_range(os.open("f", os.O_RDONLY), fd, 10, 0, 40000),
        "open for truncation": lambda fd: os.close(os.open("f", os.O_WRONLY | os.O_TRUNC)),
    }
    for name, act in ways.items():
        for mode, left in ((0o6777, 0o777), (0o4777, 0o777), (0o2777, 0o777)):
            set_id("f", mode, (1, 1))
            as_user(doing(act))
            assert mode_of("f") == left, f"{name}: {oct(mode)} to {oct(mode_of('f'))}"
    for mode in (0o6777, 0o6666):
        set_id("f", mode, (1, 1))
        doing(ways["write"])()
        assert mode_of("f") == mode, "root's writes take nothing"


def set_id_bits_by_direct_writes():
    put("f", b"x" * 9000)
    for mode, left in ((0o6777, 0o777), (0o2777, 0o777), (0o2766, (0o2766, 0o766))):
        set_id("f", mode, (1, 1))

        def write():
            os.pwritev(os.open("f", os.O_RDWR | os.O_DIRECT), [aligned(4096, 1)], 0)
        as_user(write)
        assert mode_of("f") in (left if isinstance(left, tuple) else (left,)), oct(mode_of("f"))


def set_id_bits_and_chown():
    put("f")
    for uid, gid in ((1, -1), (-1, 1), (1, 1), (-1, -1)):
        set_id("f", 0o6755)
        os.chown("f", uid, gid)
        left = mode_of("f")
        assert left == (0o755 if (uid, gid) != (-1, -1) else left), (uid, gid, oct(left))
    # Without the group's right to run it, the bit was a mark of mandatory locks and stays.
    set_id("f", 0o2745)
    os.chown("f", 1, 1)
    assert mode_of("f") == 0o2745, oct(mode_of("f"))
    os.mkdir("d")
    os.chmod("d", 0o6755)
    os.chown("d", 1, 1)
    assert mode_of("d") == 0o6755


def chown_and_chmod_rules():
    os.chmod(".", 0o777)
    put("theirs")

    def owner():
        put("mine")
        expect(errno.EPERM, os.chown, "mine", 1, -1)
        expect(errno.EPERM, os.chown, "mine", -1, 1)
        os.chown("mine", -1, 55)
        os.chown("mine", USER, 55)
        expect(errno.EPERM, os.chmod, "theirs", 0o777)
        expect(errno.EPERM, os.chown, "theirs", USER, -1)
        expect(errno.EPERM, os.utime, "theirs", (1, 1))
        expect((errno.EACCES, errno.EPERM), os.utime, "theirs")
        # Neither in the file's group nor root: no set-group-id.
        os.chown("mine", -1, 55)
    as_user(owner, groups=[55])
    os.chown("mine", USER, 99)

    def outside():
        os.chmod("mine", 0o2755)
        assert mode_of("mine") == 0o755
    as_user(outside)


def utime_by_who_may_only_write():
    put("f", mode=0o666)
    os.chmod("f", 0o666)

    def writer():
        os.utime("f")
        expect(errno.EPERM, os.utime, "f", (5, 5))
    as_user(writer)


def rights_of_directories():
    os.mkdir("x", 0o711)
    put("x/f", b"in")
    os.mkdir("r", 0o744)
    put("r/f", b"in")
    os.mkdir("w", 0o766)
    os.chmod("w", 0o766)

    def stranger():
        assert content("x/f") == b"in"
        expect(errno.EACCES, os.listdir, "x")
        assert os.listdir("r") == ["f"]
        expect(errno.EACCES, os.stat, "r/f")
        expect(errno.EACCES, put, "w/f")
        expect(errno.EACCES, put, "x/g")
        expect(errno.EACCES, os.mkdir, "x/d")
        expect(errno.EACCES, os.unlink, "x/f")
        expect(errno.EACCES, os.rename, "x/f", "x/g")
    as_user(stranger)


def supplementary_groups_count():
    put("f", b"shared", 0o060)
    os.chown("f", 0, 4242)
    os.chmod("f", 0o060)
    as_user(lambda: expect(errno.EACCES, content, "f"))

    def member():
        fd = os.open("f", os.O_RDWR)
        os.pwrite(fd, b"S", 0)
        assert os.pread(fd, 6, 0) == b"Shared"
    as_user(member, groups=[*range(5000, 5040), 4242])


def access_follows_the_real_user():
    put("f", mode=0o600)
    os.mkdir("d", 0o700)
    put("script", b"#!/bin/sh\nexit 5\n", 0o755)

    def stranger():
        assert not os.access("f", os.R_OK) and not os.access("d", os.X_OK) and os.access("script", os.X_OK)
        assert subprocess.run(["./script"], check=False).returncode == 5
    as_user(stranger)
    os.chmod("script", 0o644)
    assert not os.access("script", os.X_OK), "not even root runs what nobody may"
    expect(errno.EACCES, os.execv, "./script", ["script"])
    assert os.access("f", os.R_OK | os.W_OK)


def a_running_program_is_not_written():
    shutil.copy("/bin/sleep", "prog")
    os.chmod("prog", 0o755)
    running = subprocess.Popen(["./prog", "30"])
    try:
        expect(errno.ETXTBSY, lambda: os.open("prog", os.O_WRONLY))
        expect(errno.ETXTBSY, os.truncate, "prog", 0)
        os.unlink("prog")
    finally:
        running.kill()
        running.wait()
    put("other", content("/bin/true"), 0o755)
    fd = os.open("other", os.O_WRONLY)
    expect(errno.ETXTBSY, os.execv, "./other", ["other"])
    os.close(fd)
    assert subprocess.run(["./other"], check=False).returncode == 0


def set_user_id_programs_take_effect():
    shutil.copy("/usr/bin/id", "id")
    os.chown("id", 321, 0)
    os.chmod("id", 0o4755)

    def run():
        got = subprocess.run(["./id", "-u"], capture_output=True, check=True)
        assert got.stdout.strip() == b"321", got
    as_user(run)


def access_control_lists_decide():
    put("f", b"secret", 0o600)
    os.setxattr("f", ACCESS, acl((OWNER, 6, -1), (NAMED_USER, 4, USER), (OWNING_GROUP, 0, -1), (NAMED_GROUP, 6, 4243), (MASK, 6, -1), (OTHER, 0, -1)))
    assert mode_of("f") == 0o660

    def named():
        assert content("f") == b"secret"
        expect(errno.EACCES, lambda: os.open("f", os.O_WRONLY))
    as_user(named)
    as_user(lambda: os.close(os.open("f", os.O_RDWR)), uid=777, gid=777, groups=[4243])
    as_user(lambda: expect(errno.EACCES, content, "f"), uid=777, gid=777)
    # The mask follows the group's bits of chmod, and cuts.
    os.chmod("f", 0o640)
    as_user(lambda: expect(errno.EACCES, lambda: os.open("f", os.O_WRONLY)), uid=777, gid=777, groups=[4243])
    os.chmod("f", 0o600)
    as_user(lambda: expect(errno.EACCES, content, "f"))
    as_user(lambda: expect(errno.EPERM, os.setxattr, "f", ACCESS, acl((OWNER, 7, -1), (OWNING_GROUP, 7, -1), (OTHER, 7, -1))))
    os.setxattr("f", ACCESS, acl((OWNER, 6, -1), (OWNING_GROUP, 4, -1), (OTHER, 4, -1)))
    assert mode_of("f") == 0o644 and ACCESS not in os.listxattr("f"), "what modes can say is said by the mode"


def access_control_lists_are_inherited():
    os.mkdir("d")
    entries = (OWNER, 7, -1), (NAMED_USER, 7, USER), (OWNING_GROUP, 5, -1), (MASK, 7, -1), (OTHER, 0, -1)
    os.setxattr("d", DEFAULT, acl(*entries))
    os.umask(0o077)
    put("d/f", mode=0o666)
    os.mkdir("d/sub", 0o777)
    os.mkfifo("d/p", 0o666)
    assert mode_of("d/f") == 0o660 and mode_of("d/sub") == 0o770 and mode_of("d/p") == 0o660
    assert os.getxattr("d/sub", DEFAULT) == acl(*entries) and DEFAULT not in os.listxattr("d/f")
    assert os.getxattr("d/f", ACCESS) == acl((OWNER, 6, -1), (NAMED_USER, 7, USER), (OWNING_GROUP, 5, -1), (MASK, 6, -1), (OTHER, 0, -1))
    put("d/narrow", mode=0o640)
    assert mode_of("d/narrow") == 0o640 and os.getxattr("d/narrow", ACCESS)[-16:-12] == struct.pack("<HH", MASK, 4)
    os.symlink("t", "d/s")
    assert not os.listxattr("d/s", follow_symlinks=False)
    expect((errno.EACCES, errno.EOPNOTSUPP), os.setxattr, "d/f", DEFAULT, acl(*entries))
    expect((errno.EINVAL, errno.EOPNOTSUPP), os.setxattr, "d", DEFAULT, b"nonsense")
    expect(errno.EINVAL, os.setxattr, "d", ACCESS, acl((OWNER, 7, -1), (NAMED_USER, 7, 5), (OWNING_GROUP, 5, -1), (OTHER, 0, -1)))
    os.removexattr("d", DEFAULT)
    put("d/plain", mode=0o666)
    assert mode_of("d/plain") == 0o600


def set_group_id_goes_with_an_acl_by_a_stranger():
    os.chmod(".", 0o777)

    def owner():
        put("f")
    as_user(owner)
    os.chown("f", USER, 4244)
    os.chmod("f", 0o2755)
    as_user(lambda: os.setxattr("f", ACCESS, acl((OWNER, 7, -1), (NAMED_USER, 4, 9), (OWNING_GROUP, 5, -1), (MASK, 5, -1), (OTHER, 5, -1))))
    assert not os.stat("f").st_mode & stat.S_ISGID


def attribute_errors():
    put("f")
    for name in ("user.", "user", "", "unknown.x", "system.nothing"):
        expect((errno.EOPNOTSUPP, errno.EINVAL, errno.ERANGE), os.setxattr, "f", name, b"1")
    expect(errno.ERANGE, os.setxattr, "f", "user." + "n" * 300, b"1")
    expect(errno.E2BIG, os.setxattr, "f", "user.big", b"1" * (SIZE_MAX + 1))
    expect(errno.EINVAL, os.setxattr, "f", "user.a", b"1", 7)
    expect(errno.ENODATA, os.setxattr, "f", "user.a", b"1", os.XATTR_REPLACE)
    expect(errno.ENODATA, os.getxattr, "f", "user.a")
    expect(errno.ENODATA, os.removexattr, "f", "user.a")
    os.setxattr("f", "user.a", b"12345", os.XATTR_CREATE)
    expect(errno.EEXIST, os.setxattr, "f", "user.a", b"1", os.XATTR_CREATE)
    small = ctypes.create_string_buffer(3)
    expect(errno.ERANGE, call, libc.getxattr, b"f", b"user.a", small, 3)
    expect(errno.ERANGE, call, libc.listxattr, b"f", small, 3)
    assert call(libc.getxattr, b"f", b"user.a", None, 0) == 5
    os.setxattr("f", "user.empty", b"")
    assert os.getxattr("f", "user.empty") == b""
    os.symlink("f", "s")
    expect(errno.EPERM, lambda: os.setxattr("s", "user.a", b"1", follow_symlinks=False))
    os.mkfifo("p")
    expect(errno.EPERM, os.setxattr, "p", "user.a", b"1")
    fd = os.open("f", os.O_PATH)
    expect(errno.EBADF, call, libc.fsetxattr, fd, b"user.a", b"1", 1, 0)


def attribute_names_and_values():
    put("f")
    names = ["user.slash/dot.", "user.with space", "user.\u00e9", "user.\udcff", "user." + "n" * 150, "user.A", "user.a",
             "security.mine", "trusted.mine"]
    for number, name in enumerate(names):
        os.setxattr("f", name, bytes([number]) * (number * 20))
    for number, name in enumerate(names):
        assert os.getxattr("f", name) == bytes([number]) * (number * 20), name
    assert sorted(os.listxattr("f")) == sorted(names)
    for length in (1000, 5, 700, 0, 1200):
        os.setxattr("f", "user.a", b"v" * length)
        assert os.getxattr("f", "user.a") == b"v" * length
    for name in names[::2]:
        os.removexattr("f", name)
    assert sorted(os.listxattr("f")) == sorted(names[1::2])
    os.rename("f", "g")
    os.link("g", "h")
    assert sorted(os.listxattr("h")) == sorted(names[1::2])


def attributes_and_rights():
    put("f", mode=0o644)
    os.setxattr("f", "trusted.t", b"1")
    os.setxattr("f", "user.u", b"1")
    os.mkdir("sticky")
    os.chmod("sticky", 0o1777)

    def stranger():
        assert os.listxattr("f") == ["user.u"] and os.getxattr("f", "user.u") == b"1"
        expect(errno.ENODATA, os.getxattr, "f", "trusted.t")
        expect(errno.EPERM, os.setxattr, "f", "trusted.t", b"2")
        expect(errno.EACCES, os.setxattr, "f", "user.u", b"2")
        expect(errno.EPERM, os.setxattr, "f", "security.s", b"2")
        expect(errno.EPERM, os.setxattr, "sticky", "user.u", b"2")
    as_user(stranger)
    os.chmod("f", 0o200)
    as_user(lambda: expect(errno.EACCES, os.getxattr, "f", "user.u"))


def attributes_set_and_replaced_by_many():
    put("f")
    children = []
    for who in range(4):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                for turn in range(200):
                    os.setxattr("f", "user.one", bytes([who]) * 50)
                    got = os.getxattr("f", "user.one")
                    assert len(got) == 50 and len(set(got)) == 1
                    os.setxattr("f", f"user.of-{who}", b"%d" % turn)
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    assert all(os.waitpid(child, 0)[1] == 0 for child in children)
    assert sorted(os.listxattr("f")) == [*(f"user.of-{who}" for who in range(4)), "user.one"]


def capabilities_go_with_a_write():
    put("f", b"x" * 100, 0o755)
    capability = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)
    for act in (lambda: os.pwrite(os.open("f", os.O_WRONLY), b"y", 0), lambda: os.truncate("f", 50),
                lambda: os.chown("f", 1, 1)):
        os.setxattr("f", "security.capability", capability)
        assert os.getxattr("f", "security.capability") == capability
        act()
        expect(errno.ENODATA, os.getxattr, "f", "security.capability")


def immutable_files():
    fd = new("f", b"x")
    os.close(fd)
    fd = os.open("f", os.O_RDONLY)
    value = bytearray(8)
    try:
        fcntl.ioctl(fd, 0x80086601, value)
        flags = struct.unpack("<q", value)[0] & 0xffffffff
        fcntl.ioctl(fd, 0x40086602, struct.pack("<q", flags | 0x10))
    except OSError as e:
        raise Skipped(str(e)) from e
    try:
        expect(errno.EPERM, lambda: os.open("f", os.O_WRONLY))
        expect(errno.EPERM, os.unlink, "f")
        expect(errno.EPERM, os.rename, "f", "g")
        expect(errno.EPERM, os.link, "f", "g")
        expect(errno.EPERM, os.chmod, "f", 0o600)
        expect(errno.EPERM, os.truncate, "f", 0)
        expect(errno.EPERM, os.setxattr, "f", "user.a", b"1")
        expect(errno.EPERM, os.utime, "f", (1, 1))
        assert content("f") == b"x"
    finally:
        fcntl.ioctl(fd, 0x40086602, struct.pack("<q", flags))
    os.unlink("f")


def unknown_ioctls_are_enotty():
    fd = new("f")
    expect(errno.ENOTTY, fcntl.ioctl, fd, 0x5401, bytearray(100))
    expect(errno.ENOTTY, fcntl.ioctl, fd, 0x80047a7a, bytearray(4))
    here = os.open(".", os.O_RDONLY)
    expect(errno.ENOTTY, fcntl.ioctl, here, 0x5401, bytearray(100))
    value = bytearray(4)
    fcntl.ioctl(fd, 0x541b, value)
    os.write(fd, b"12345")
    os.lseek(fd, 2, 0)
    fcntl.ioctl(fd, 0x541b, value)
    assert struct.unpack("<i", value)[0] == 3
