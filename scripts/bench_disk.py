"""A new ext4 of its own for each target of scripts/bench, so that none pays for what others have left.

ext4 passes over every inode that was deleted in the last minutes when it looks for a free one, which makes the time of a
create depend on who deleted what before. One image, written through once, is formatted anew for each target.
"""

import os
import subprocess
import time
from pathlib import Path

MIB = 1 << 20
BUSY_MAX_SECONDS = 30


def run(*command):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise SystemExit(f"bench: {' '.join(str(c) for c in command)}: {done.stderr.strip()}")
    return done.stdout.strip()


class Disk:
    """An image on a loop device, and where it is mounted."""

    def __init__(self, place, length):
        self.image, self.dir = Path(place) / "image", Path(place) / "disk"
        zeros = bytes(MIB)
        with open(self.image, "wb") as out:
            for _ in range(length // MIB):
                out.write(zeros)
            os.fsync(out.fileno())
        self.dir.mkdir()
        self.device = run("losetup", "--find", "--show", "--direct-io=on", self.image)

    def renew(self):
        """Formats and mounts it anew; gives the directory."""
        self.unmount()
        # No inode table is zeroed in the background while something is measured.
        run("mkfs.ext4", "-q", "-F", "-E", "nodiscard,lazy_itable_init=1", self.device)
        run("mount", "-o", "noinit_itable", self.device, self.dir)
        return self.dir

    def unmount(self):
        deadline = time.monotonic() + BUSY_MAX_SECONDS
        while os.path.ismount(self.dir):
            # The daemon of the target may still be about to end.
            done = subprocess.run(["umount", self.dir], capture_output=True, text=True, timeout=600)
            if done.returncode and time.monotonic() > deadline:
                raise SystemExit(f"bench: {done.stderr.strip()}")
            time.sleep(0.1)

    def close(self):
        self.unmount()
        run("losetup", "--detach", self.device)
        self.image.unlink()
