"""What the keeper of the off-site copy decides, by itself."""

from __future__ import annotations

import datetime as dt
import importlib.util
import json
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SOURCE = ROOT / "roles" / "offsite" / "templates" / "bin" / "keeper.py"
sys.path.insert(0, str(ROOT / "files" / "templates"))  # what it shares with the other keeper
_spec = importlib.util.spec_from_file_location("offsite_keeper", SOURCE)
assert _spec is not None
assert _spec.loader is not None
keeper: Any = importlib.util.module_from_spec(_spec)
sys.modules["offsite_keeper"] = keeper
_spec.loader.exec_module(keeper)

NOON = dt.datetime(2026, 3, 31, 12, tzinfo=dt.UTC)


def policy(repository: str = "/repository") -> Any:
    return keeper.Policy(repository, 15, "copies", "stack")


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """What would have been run; directories of its own."""
    found: list[tuple[str, ...]] = []
    for name in ("home", "source", "secrets", "config", "memory"):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(keeper, name.upper(), tmp_path / name)
    (tmp_path / "config" / "ca.pem").write_text("\n")
    for name in ("password", "rest_password", "s3_access_key", "s3_secret_key"):
        (tmp_path / "secrets" / f"offsite_{name}").write_text(f"the {name}\n")
    state = keeper.State(tmp_path / "home" / "keeper.json", **keeper.STATE.defaults)
    monkeypatch.setattr(keeper, "STATE", state)
    monkeypatch.setattr(keeper, "now", lambda: NOON)
    monkeypatch.setattr(keeper, "reach", lambda _: None)
    answers = {
        "cat": json.dumps({"id": "a" * 64}),
        "backup": json.dumps({"snapshot_id": "b" * 64}),
        "stats": json.dumps({"total_size": 5}),
    }

    def run(*command: str, **environment: Any) -> str:
        verb = command[command.index("--repository-file") + 2]
        assert "the " not in " ".join([*command, *map(str, environment.values())])
        found.append((verb, *command[command.index(verb) + 1 :]))
        if verb == "snapshots":
            made = [command for command in found if command[0] == "backup"]
            tags = [command[command.index("--tag") + 1] for command in made]
            item = {"id": "b" * 64, "short_id": "b" * 8, "time": NOON.isoformat()}
            return json.dumps([{**item, "tags": [tag]} for tag in tags])
        return answers.get(verb, "")

    monkeypatch.setattr(keeper, "run", run)
    return found


def verbs(ran: list[tuple[str, ...]]) -> list[str]:
    return [command[0] for command in ran]


def test_what_is_due(ran: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    """FS-7: a copy every quarter of an hour; once a day what is old goes, and all is read."""
    keeper.tend(policy())
    assert verbs(ran) == [
        "init", "cat", "unlock", "snapshots", "backup", "snapshots", "forget", "stats", "cat",
        "unlock", "check",
    ]  # fmt: skip
    assert ran[-1][1:] == ("--read-data-subset", "100%")
    ran.clear()
    monkeypatch.setattr(keeper, "now", lambda: NOON + dt.timedelta(minutes=14))
    keeper.tend(policy())
    assert ran == []
    monkeypatch.setattr(keeper, "now", lambda: NOON + dt.timedelta(minutes=15))
    keeper.tend(policy())
    assert verbs(ran) == ["cat", "unlock", "snapshots", "backup", "snapshots"]
    keeper.STATE.update(bytes=keeper.SMALL)
    keeper.check(policy())
    assert ran[-1] == ("check", "--read-data-subset", "2/7"), "a Tuesday's seventh"


def test_a_recovered_host_waits(
    ran: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """FS-7: nothing in the repository is changed before the stack has had time to serve."""
    day_before = (NOON - dt.timedelta(days=1)).isoformat()
    keeper.STATE.update(
        repository="a" * 64, succeeded=day_before, recovered=NOON.isoformat(), failing={"why": "x"}
    )
    keeper.tend(policy())
    assert ran == []
    monkeypatch.setattr(keeper, "now", lambda: NOON + dt.timedelta(minutes=15))
    keeper.tend(policy())
    assert verbs(ran)[:4] == ["cat", "unlock", "snapshots", "backup"]


def changing(times: int, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So many copies during which a backup comes."""
    meta = source / "backup" / "main" / "meta"
    meta.mkdir(parents=True)
    run: Callable[..., str] = keeper.run
    left = [times]

    def busy(*command: str, **environment: Any) -> str:
        if "backup" in command and left[0]:
            left[0] -= 1
            (meta / f"{left[0]}-backup.info").touch()
        return run(*command, **environment)

    monkeypatch.setattr(keeper, "run", busy)


def test_a_backup_that_comes_meanwhile(
    ran: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """FS-7: half of it is in no copy that is kept."""
    changing(2, keeper.SOURCE, monkeypatch)
    keeper.copy(policy())
    assert verbs(ran)[4:] == ["backup", "forget", "backup", "forget", "backup", "snapshots"]


def rewriting(times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """So many copies during which Redis begins its files anew; what happens."""
    queue, left, happened = tmp_path / "queue", [times], list[str]()
    files = queue / "appendonlydir"
    files.mkdir(parents=True)
    (files / "appendonly.aof.manifest").write_text("seq 0")
    (queue / "temp-rewriteaof-7.aof").touch()
    monkeypatch.setattr(keeper, "QUEUE", queue)
    monkeypatch.setattr(keeper, "COPY", tmp_path / "home" / "redis")
    monkeypatch.setattr(keeper.time, "sleep", lambda _: happened.append("settled"))
    copytree: Callable[..., Any] = keeper.shutil.copytree

    def busy(*paths: Path, **options: Any) -> None:
        copytree(*paths, **options)
        if paths[0] != queue:
            return
        happened.append("copied")
        if left[0]:
            left[0] -= 1
            (files / "appendonly.aof.manifest").write_text(f"seq {times - left[0]}")

    monkeypatch.setattr(keeper.shutil, "copytree", busy)
    return happened


def test_redis_is_copied_before_what_leaves_its_queue(
    ran: list[tuple[str, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FS-7, UT-2: again when its files were exchanged, and before the WAL; else events are lost."""
    happened = rewriting(2, tmp_path, monkeypatch)
    run: Callable[..., str] = keeper.run

    def noted(*command: str, **environment: Any) -> str:
        if "backup" in command:
            happened.append("backed up")
            assert command[-2:] == (str(keeper.SOURCE), str(keeper.COPY))
        return run(*command, **environment)

    monkeypatch.setattr(keeper, "run", noted)
    keeper.copy(policy())
    assert happened == ["copied", "copied", "copied", "settled", "backed up"]
    assert [path.name for path in keeper.COPY.iterdir()] == ["appendonlydir"]


def test_redis_that_never_rests(
    ran: list[tuple[str, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bad input: it is said, and nothing half is kept."""
    rewriting(99, tmp_path, monkeypatch)
    with pytest.raises(keeper.Refused, match="Redis' files could not be copied"):
        keeper.copy(policy())
    assert verbs(ran) == ["init", "cat", "unlock", "snapshots"]


def test_backups_that_never_rest(
    ran: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bad input: it is said."""
    changing(99, keeper.SOURCE, monkeypatch)
    with pytest.raises(keeper.Refused, match="changed during each of 5 copies"):
        keeper.noted(keeper.copy, policy())
    assert verbs(ran)[-1] == "forget"
    assert "offsite_failing 1\n" in keeper.metrics()


def refusing(text: str) -> Callable[..., str]:
    def run(*_: str, **__: Any) -> str:
        raise keeper.Refused(text)

    return run


def test_an_empty_place(ran: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Bad input: a repository that was there is not made anew, until somebody wants it."""
    keeper.STATE.update(repository="a" * 64)
    run = keeper.run
    missing = "restic ended with 10: Fatal: repository does not exist"
    monkeypatch.setattr(keeper, "run", refusing(missing))
    with pytest.raises(keeper.Refused, match="The repository is gone"):
        keeper.copy(policy())
    keeper.begin()
    monkeypatch.setattr(keeper, "run", run)
    keeper.copy(policy())
    assert verbs(ran)[0] == "init"


def test_a_repository_of_before(
    ran: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """FS-7: it is gone on with; restic makes none where there is one."""
    run: Callable[..., str] = keeper.run

    def there(*command: str, **environment: Any) -> str:
        if "init" in command:
            raise keeper.Refused("restic ended with 1: Fatal: config already initialized")
        return run(*command, **environment)

    monkeypatch.setattr(keeper, "run", there)
    keeper.copy(policy())
    assert verbs(ran)[0] == "cat"


def test_another_repository(ran: list[tuple[str, ...]]) -> None:
    """Bad input: the wrong disk is mounted."""
    keeper.STATE.update(repository="c" * 64)
    with pytest.raises(keeper.Refused, match="is another than the one that was there: aaaaaaaa"):
        keeper.copy(policy())
    assert verbs(ran) == ["cat"]


def test_another_host(ran: list[tuple[str, ...]]) -> None:
    """Bad input: one that was thought lost copies on, or another stack is called the same."""
    other = ("backup", "--tag", "of-the-other")
    keeper.copy(policy())
    ran.append(other)
    for repository, identity in (("a" * 64, "mine"), (None, None)):
        keeper.STATE.update(repository=repository, identity=identity)
        with pytest.raises(keeper.Refused, match="Another host has copied here as stack: bbbbbbbb"):
            keeper.copy(policy())
        assert verbs(ran)[-1] == "snapshots"
    # From that copy goes on who was recovered from it, and who is to.
    for adopted in ("b" * 64, "next"):
        keeper.STATE.update(adopted=adopted)
        for _ in range(2):
            keeper.copy(policy())
        ran.append(other)


def test_a_host_that_takes_another_ones_place(
    ran: list[tuple[str, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FS-7: it goes on from the copy that it was made of, and sees when the other comes back."""
    keeper.copy(policy())
    monkeypatch.setattr(keeper, "TARGET", tmp_path / "target")
    keeper.TARGET.mkdir()
    monkeypatch.setattr(keeper, "chosen", lambda *_: json.loads(keeper.run(
        "restic", "--repository-file", "x", "snapshots"))[-1])  # fmt: skip
    keeper.STATE.update(identity=None)
    keeper.restore(policy(), "", "0:0")
    assert keeper.STATE.read()["adopted"] == "b" * 64
    keeper.copy(policy())
    ran.append(("backup", "--tag", "of-the-other"))
    keeper.STATE.update(adopted=None)
    with pytest.raises(keeper.Refused, match="Another host has copied here"):
        keeper.copy(policy())


@pytest.mark.parametrize("data", [{"postgres_version": 18}, {}])
def test_what_a_copy_holds(
    ran: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch, data: dict[str, int]
) -> None:
    """FS-7: the newest release's version, and that of PostgreSQL, where it was kept."""
    answers = {
        "snapshots": json.dumps([
            {"id": "b" * 64, "short_id": "b" * 8, "time": NOON.isoformat(), "hostname": "stack"}
        ]),
        "stats": '{"total_size": 5}',
        "ls": "\n".join(
            json.dumps({"path": path})
            for path in ("/source/backup", "/source/state", "/source/state/releases/9",
                         "/source/state/releases/10", str(keeper.COPY))
        ),
        "dump": json.dumps({"version": "1.2", "images": {"api": "api:1"}, "data": data}),
    }  # fmt: skip
    asked: list[tuple[str, ...]] = []

    def reading(_: Any, verb: str, *arguments: str, **__: Any) -> str:
        asked.append((verb, *arguments))
        return answers[verb]

    monkeypatch.setattr(keeper, "identity", lambda _: "a" * 64)
    monkeypatch.setattr(keeper, "reading", reading)
    found = keeper.look(policy(), "")
    assert found["postgres"] == str(data.get("postgres_version", ""))
    assert (found["release"], found["version"], found["image"]) == (10, "1.2", "api:1")
    assert found["parts"] == ["backup", "state", "redis"]
    assert asked[-1][-1] == "/source/state/releases/10/release.json"


def test_copies_of_before_had_no_tag(ran: list[tuple[str, ...]]) -> None:
    """FS-7: they are gone on with."""
    keeper.STATE.update(repository="a" * 64)
    ran.append(("backup", "--tag", ""))
    for _ in range(2):
        keeper.copy(policy())


def test_a_lost_line_is_no_damage(
    ran: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bad input: nothing is taken out of a repository that could not be read."""
    monkeypatch.setattr(keeper, "opened", lambda _: None)
    said = "restic ended with 1: Load(<data/02c8>, 9, 0) failed: dial tcp: i/o timeout"
    monkeypatch.setattr(keeper, "run", refusing(said))
    with pytest.raises(keeper.Refused, match="cannot be reached"):
        keeper.noted(keeper.check, policy())
    assert keeper.STATE.read()["unchecked"]["why"].endswith("i/o timeout")
    assert ran == []


@pytest.mark.parametrize(
    ("repository", "file", "holds"),
    [
        ("rest:https://host/x", "repository", "https://copies:the%20rest_password@host/x"),
        ("s3:https://host/bucket", "s3", "aws_secret_access_key = the s3_secret_key"),
    ],
)
def test_accounts_are_in_files(
    ran: list[tuple[str, ...]], repository: str, file: str, holds: str
) -> None:
    """FS-8: in memory, for restic alone; in no argument or variable, as `ran` sees to."""
    keeper.copy(policy(repository))
    path = keeper.MEMORY / file
    assert holds in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600


def test_what_is_said_holds_no_secret(
    ran: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """FS-8: whatever a server or restic repeats of it."""
    monkeypatch.setattr(keeper, "run", refusing("restic ended with 1: no such user: the password"))
    with pytest.raises(keeper.Refused, match=r"no such user: \*\*\*"):
        keeper.copy(policy())
