"""The slots' sockets: directories, the link to the serving slot, and its switch."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from tests import disk

from .conftest import run_module

SLOTS = ["blue", "green"]


def run(path: Path, *options: str, **params: Any) -> dict[str, Any]:
    """What the module answers when it is run by Ansible on this machine."""
    owner = {"slots": SLOTS, "owner": os.getuid(), "group": os.getgid()}
    return run_module("socket_slots", {"path": str(path), **owner, **params}, *options)


def test_makes_the_directories_and_no_link_before_a_slot_serves(tmp_path: Path) -> None:
    sockets = tmp_path / "run" / "sockets"
    answer = run(sockets)
    assert (answer["changed"], answer["active"]) == (True, None)
    assert not (sockets / "active").is_symlink()
    for slot in SLOTS:
        assert stat.S_IMODE((sockets / slot).stat().st_mode) == 0o750
    assert run(sockets)["changed"] is False


def test_switches_and_says_what_served_before(tmp_path: Path) -> None:
    sockets = tmp_path / "run" / "sockets"
    assert run(sockets, active="blue")["previous"] is None
    answer = run(sockets, active="green")
    assert (answer["changed"], answer["previous"], answer["active"]) == (True, "blue", "green")
    assert (sockets / "active").readlink() == Path("green")
    assert run(sockets, active="green")["changed"] is False
    assert run(sockets)["active"] == "green", "without active the link stays"


@pytest.mark.skipif(bool(disk.missing()), reason=disk.missing())
def test_survives_the_power_going_at_once(tmp_path: Path) -> None:
    """BM-10: what served before may be stopped next, and must not be led to after a power cut."""
    host = disk.Disk(tmp_path, 32 << 20)
    try:
        run(host.mount / "sockets", active="blue")
        os.sync()
        run(host.mount / "sockets", active="green")
        host.cut()
        host.unplug()
        host.plug_in()
        assert (host.mount / "sockets" / "active").readlink() == Path("green")
    finally:
        host.remove()


def test_check_mode_says_so_and_changes_nothing(tmp_path: Path) -> None:
    answer = run(tmp_path / "run" / "sockets", "--check", active="blue")
    assert (answer["changed"], answer["active"]) == (True, "blue")
    assert list(tmp_path.iterdir()) == []


def test_repairs_a_mode_that_somebody_changed(tmp_path: Path) -> None:
    sockets = tmp_path / "run" / "sockets"
    run(sockets)
    (sockets / "blue").chmod(0o700)
    assert run(sockets)["changed"] is True
    assert stat.S_IMODE((sockets / "blue").stat().st_mode) == 0o750


def test_refuses_a_slot_that_does_not_exist(tmp_path: Path) -> None:
    answer = run(tmp_path, active="red")
    assert answer["failed"] is True
    assert "none of the slots blue, green" in answer["msg"]


def test_whoever_looks_during_a_switch_meets_a_slot(tmp_path: Path) -> None:
    """BM-10: the switch is one rename(2), so the link is never missing."""
    from plugins.module_utils.slots import point

    for slot in SLOTS:
        (tmp_path / slot).mkdir()
        (tmp_path / slot / "api-1.sock").touch()
    point(tmp_path, "blue")
    done = threading.Event()
    missed: list[OSError] = []

    def look() -> None:
        while not done.is_set():
            try:
                (tmp_path / "active" / "api-1.sock").stat()
            except OSError as error:
                missed.append(error)

    reader = threading.Thread(target=look)
    reader.start()
    for number in range(2000):
        point(tmp_path, SLOTS[number % 2 - 1])
    done.set()
    reader.join()
    assert missed == []
