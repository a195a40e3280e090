"""The directories in which the slots listen, and the link that names the one that serves."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

LINK = "active"


class Directory(NamedTuple):
    """A directory as it should be."""

    path: Path
    mode: int
    owner: int
    group: int

    def differs(self) -> bool:
        """Tell whether it is missing or has another mode or owner."""
        try:
            found = self.path.stat()
        except OSError:
            return True
        return (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) != self[1:]


def directories(path: Path, slots: list[str], owner: int, group: int) -> list[Directory]:
    """Return the directories of the slots, their parents first."""
    parents = [Directory(path.parent, 0o755, 0, 0), Directory(path, 0o755, 0, 0)]
    return parents + [Directory(path / slot, 0o750, owner, group) for slot in slots]


def active(path: Path) -> str | None:
    """Name the slot that the link leads to, or None when there is no link."""
    link = path / LINK
    return str(link.readlink()) if link.is_symlink() else None


def point(path: Path, slot: str) -> None:
    """Point the link at the slot by one rename(2) that survives a power failure."""
    fresh = path / f".{LINK}"
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(slot)
    fresh.replace(path / LINK)
    # Before the slot that it led to is stopped, which may be kept on another disk.
    directory = os.open(path, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
