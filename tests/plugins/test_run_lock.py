"""One run at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from plugins.action.run_lock import has_ended, machine, start_of
from plugins.modules.run_lock import Lock

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from .conftest import Project


def owner(token: str = "laptop 1 x") -> dict[str, Any]:
    return {"token": token, "who": "ada@laptop", "what": "site.yml", "controller": "laptop"}


@pytest.fixture
def lock(tmp_path: Path) -> Lock:
    return Lock(tmp_path / "run" / "web.lock")


def test_taken_once_and_given_back_by_its_owner_alone(lock: Lock) -> None:
    """BM-10: the second is told who has it."""
    assert lock.take(owner(), 60, "") == {}
    assert lock.take(owner(), 60, "") == {}, "the same run may take it again"
    assert lock.take(owner("other 2 y"), 60, "")["who"] == "ada@laptop"
    assert lock.give_back("other 2 y") == {}
    assert lock.owner()["token"] == "laptop 1 x"
    assert lock.give_back("laptop 1 x")["token"] == "laptop 1 x"
    assert lock.take(owner("other 2 y"), 60, "") == {}


def test_what_counts_no_more(lock: Lock) -> None:
    """BM-10: an expired lock, one whose run has ended, and what is no lock at all."""
    assert lock.take(owner(), 0, "") == {}
    assert lock.take(owner("b"), 60, "") == {}
    assert lock.take(owner("c"), 60, "b") == {}
    for text in ("", "[]", "{", '"text"', '{"expires": 9999999999}'):
        lock.path.write_text(text)
        assert lock.take(owner("d"), 60, "") == {}
        assert lock.give_back(None)["token"] == "d"


def test_of_fifty_at_once_one_gets_it(lock: Lock) -> None:
    """BM-10: in processes of their own, let go together by the end of one pipe; twenty times."""
    code = (
        "import os, sys; from pathlib import Path; from plugins.modules.run_lock import Lock\n"
        "me = {'token': sys.argv[2], 'who': sys.argv[2]}\n"
        "for gate in map(int, sys.argv[3:]):\n"
        "    print('ready', flush=True)\n"
        "    os.read(gate, 1)\n"
        "    print(Lock(Path(sys.argv[1])).take(me, 60, '').get('who', 'mine'), flush=True)\n"
    )
    gates = [os.pipe() for _ in range(20)]
    reading = [gate for gate, _ in gates]
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(lock.path), str(number), *map(str, reading)],
            pass_fds=reading,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(50)
    ]

    def lines() -> list[str]:
        return [run.stdout.readline().strip() for run in runs if run.stdout is not None]

    for gate, opener in gates:
        assert lines() == ["ready"] * 50
        lock.give_back(None)
        os.close(opener)
        answers = lines()
        (winner,) = (number for number, answer in enumerate(answers) if answer == "mine")
        assert {answer for answer in answers if answer != "mine"} == {str(winner)}
        os.close(gate)
    assert {run.wait() for run in runs} == {0}


@pytest.fixture
def other_run() -> Iterator[subprocess.Popen[bytes]]:
    """A process of this controller that goes on."""
    process = subprocess.Popen(["sleep", "600"])
    yield process
    process.kill()
    process.wait()


def held_by(process: int, path: Path) -> None:
    """Leave the lock as a run of that process would."""
    controller = f"{os.uname().nodename} {machine()}"
    started = start_of(process)
    text = {
        "who": f"ada@{os.uname().nodename}",
        "what": "site.yml",
        "controller": controller,
        "process": process,
        "started": started,
        "token": f"{controller} {process} {started}",
        "since": time.time() - 240,
        "expires": time.time() + 3000,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(text))


def test_message_to_the_second(project: Project, other_run: subprocess.Popen[bytes]) -> None:
    """BM-10: who, since when, and how to clear it; what the first holds stays."""
    path = project.root / "run" / "web.lock"
    held_by(other_run.pid, path)
    outcome = project.tasks({"name": "Lock", "run_lock": {"path": str(path)}})
    assert outcome.returncode != 0
    message = outcome.last["msg"]
    assert "Another run is changing this stack: site.yml by ada@" in message
    assert "(4 minutes ago)" in message
    assert "`make unlock`" in message
    again = project.tasks({"name": "Lock", "run_lock": {"path": str(path)}}, options=("--check",))
    assert again.returncode != 0
    released = project.tasks({"run_lock": {"path": str(path), "state": "released"}})
    assert released.returncode == 0
    assert path.exists()
    cleared = project.tasks({"run_lock": {"path": str(path), "state": "cleared"}})
    assert cleared.last["changed"] is True
    assert cleared.last["owner"]["what"] == "site.yml"
    assert not path.exists()


def test_run_that_was_killed(project: Project, other_run: subprocess.Popen[bytes]) -> None:
    """BM-10: the next run on the same controller takes over, at once."""
    path = project.root / "run" / "web.lock"
    held_by(other_run.pid, path)
    other_run.kill()
    other_run.wait()
    began = time.time()
    outcome = project.tasks(
        {"name": "Lock", "run_lock": {"path": str(path)}},
        {"name": "Unlock", "run_lock": {"path": str(path), "state": "released"}},
    )
    assert outcome.returncode == 0
    assert outcome.tasks[0]["owner"]["what"] == "play.yml"
    assert began <= outcome.tasks[0]["owner"]["since"] <= time.time()
    assert not path.exists()


def test_journal(project: Project, other_run: subprocess.Popen[bytes]) -> None:
    """BM-10: every run has a beginning, and an end unless it was killed."""
    path, journal = project.root / "run" / "web.lock", project.root / "state" / "journal.jsonl"
    held_by(other_run.pid, path)
    lock = {"path": str(path), "journal": str(journal), "why": "a try"}
    cleared = {"run_lock": {**lock, "state": "cleared"}}
    taken = {"run_lock": lock}
    released = {"run_lock": {**lock, "state": "released", "outcome": "failed: so"}}
    project.tasks(cleared, taken, released)
    assert not journal.exists(), "not before anything else of the stack is there"
    journal.parent.mkdir()
    project.tasks(taken, released, options=("--check",))
    assert not journal.exists()

    held_by(other_run.pid, path)
    project.tasks(taken)
    project.tasks(cleared, taken, released)
    entries = [json.loads(line) for line in journal.read_text().splitlines()]
    assert [(entry["event"], entry.get("outcome")) for entry in entries] == [
        ("ended", "its lock was cleared"),
        ("began", None),
        ("ended", "failed: so"),
    ]
    assert entries[1]["token"] == entries[2]["token"] != entries[0]["token"]
    assert entries[2]["since"] <= entries[2]["at"]
    assert {entry["why"] for entry in entries} == {"a try"}


def test_where_the_module_cannot_run(project: Project) -> None:
    """BM-10: no lock and no failure: what comes next says what is wrong."""
    nowhere = {"ansible_python_interpreter": "/nowhere/python3"}
    lock = {"path": str(project.root / "web.lock")}
    outcome = project.tasks(
        {"name": "Lock", "run_lock": lock, "vars": nowhere},
        {"name": "Next", "ansible.builtin.debug": {"msg": "reached"}},
        {"name": "Unlock", "run_lock": {**lock, "state": "released"}, "vars": nowhere},
    )
    assert outcome.returncode == 0, outcome.output
    assert outcome.tasks[0]["held"] is False


def test_lock_that_cannot_be_written(project: Project) -> None:
    """BM-10: a full or missing file system is no reason to go on without a lock."""
    outcome = project.tasks({"run_lock": {"path": "/proc/nothing/web.lock"}})
    assert outcome.returncode != 0
    assert "Cannot keep the lock: No such file or directory (/proc/nothing" in outcome.last["msg"]


@pytest.mark.parametrize(
    ("change", "ended"),
    [
        ({}, False),
        ({"started": "another boot 1"}, True),
        ({"process": 4194300}, True),
        ({"controller": "another"}, False),
        ({"controller": "another", "process": 4194300}, False),
    ],
)
def test_which_runs_have_ended(
    change: dict[str, Any], ended: bool, other_run: subprocess.Popen[bytes]
) -> None:
    """BM-10: only this controller's own runs can be known to have ended."""
    other = {"controller": "here", "process": other_run.pid, "started": start_of(other_run.pid)}
    assert has_ended({**other, **change}, {"controller": "here", "started": "now"}) is ended


def test_reader_during_changes(lock: Lock) -> None:
    """BM-10: whoever looks meets a whole lock or none."""
    stop = threading.Event()

    def change() -> None:
        while not stop.is_set():
            lock.take(owner(), 60, "")
            lock.give_back(None)

    thread = threading.Thread(target=change)
    thread.start()
    seen = [lock.owner() for _ in range(3000)]
    stop.set()
    thread.join()
    assert all(entry["who"] == "ada@laptop" for entry in seen if entry)
