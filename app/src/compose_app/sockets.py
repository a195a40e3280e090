"""Sockets of one slot: each instance that shares the directory takes an index of its own."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

RECORD = "compose-app.socket"
"""File in the run directory that holds the path of this instance's socket."""


class NoFreeIndex(Exception):
    """As many instances as there may be are running already."""


def claim(directory: Path, application: str, scale: int, patience: float = 15.0) -> tuple[int, int]:
    """Take the lowest index of `directory` that no other instance of the application has.

    The lock lasts as long as any process that inherits it lives, so an index is not given away
    while workers of the instance that had it still finish their requests.

    Args:
        directory: where the sockets of the slot are.
        application: its name.
        scale: highest index there is.
        patience: seconds to wait for an index to become free.

    Returns:
        The index, from 1, and the descriptor that holds its lock.

    Raises:
        NoFreeIndex: all are taken.
        OSError: the directory cannot be written to.
    """
    deadline = time.monotonic() + patience
    while True:
        for index in range(1, scale + 1):
            lock = os.open(
                directory / f".lock-{application}-{index}",
                os.O_CREAT | os.O_RDWR | os.O_CLOEXEC,
                0o600,
            )
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
            else:
                return index, lock
        if time.monotonic() >= deadline:
            raise NoFreeIndex(
                f"all {scale} sockets of {directory} are in use: is API_SCALE too low?"
            )
        time.sleep(0.2)


def path(directory: Path, application: str, index: int) -> Path:
    """Path of a socket."""
    return directory / f"{application}-{index}.sock"
