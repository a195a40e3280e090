"""A file system of its own, whose power can be cut."""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
from pathlib import Path

from tests.harness import wait_for

# From the kernel's <linux/fs.h>: all later I/O fails and what is dirty is dropped, the journal too.
SHUTDOWN, NO_LOG_FLUSH = 0x8004587D, struct.pack("I", 2)
# Each by the package that has it.
NEEDS = {"mke2fs": "e2fsprogs", "losetup": "mount"}


def missing() -> str:
    """What this computer lacks to have one; empty when nothing does."""
    packages = [package for program, package in NEEDS.items() if not shutil.which(program)]
    if packages:
        return f"apt-get install {' '.join(packages)}"
    if os.geteuid() != 0:
        return "run as root"
    return "" if Path("/dev/loop-control").exists() else "a kernel with loop devices"


class Disk:
    """An ext4 file system in a file, mounted.

    A cut is what the tests of Linux' file systems (xfstests) take for one: the file system is shut
    down without writing anything. What the kernel had not sent to the disk is lost; what it had
    sent is there, as on a disk whose cache is not volatile, or is flushed when it is told so.
    """

    def __init__(self, directory: Path, size: int) -> None:
        self.mount = directory / "disk"
        self._file = directory / "disk.img"
        with self._file.open("wb") as file:
            file.truncate(size)
        _run("mke2fs", "-q", "-t", "ext4", self._file)
        self.mount.mkdir()
        self.plug_in()

    def plug_in(self) -> None:
        """Mount it, which replays its journal."""
        _run("mount", "-o", "loop", self._file, self.mount)

    def cut(self) -> None:
        """Take its power away."""
        descriptor = os.open(self.mount, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, SHUTDOWN, NO_LOG_FLUSH)
        finally:
            os.close(descriptor)

    def unplug(self) -> None:
        """Unmount it, as soon as nothing uses it any more."""

        def unmounted() -> bool:
            done = subprocess.run(["umount", self.mount], capture_output=True, check=False)
            return done.returncode == 0

        wait_for(f"{self.mount} to be free", unmounted)

    def remove(self) -> None:
        if self.mount.is_mount():
            self.unplug()
        self._file.unlink()
        self.mount.rmdir()


def _run(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stderr}"
