"""What is due, what is kept and what can be restored: the keeper's judgement, by itself."""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import importlib.util
import json
import shutil
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.harness import ROOT

if TYPE_CHECKING:
    from pathlib import Path

SOURCE = ROOT / "roles" / "backup" / "templates" / "bin" / "keeper.py"
sys.path.insert(0, str(ROOT / "files" / "templates"))  # what it shares with the other keeper
_spec = importlib.util.spec_from_file_location("keeper", SOURCE)
assert _spec is not None
assert _spec.loader is not None
keeper: Any = importlib.util.module_from_spec(_spec)
sys.modules["keeper"] = keeper
_spec.loader.exec_module(keeper)

HOUR = 2
POLICY = keeper.Policy(HOUR, 7, 4, 6, 4)
WINDOW = dt.timedelta(days=7)
NOON = dt.datetime(2026, 3, 31, 12, tzinfo=dt.UTC)
MINUTE = dt.timedelta(minutes=1)
DAY = dt.timedelta(days=1)


def backup(began: dt.datetime, *, parent: str | None = None, **more: Any) -> Any:
    facts = {"status": "DONE", "wal": "0" * 24, "bytes": 1 << 20, "verified": True, **more}
    return keeper.Backup(
        id=f"{began:%Y%m%dT%H%M%S}", parent=parent, began=began, end=began + MINUTE, **facts
    )


RECORD = """\
backup_id=20261128T100259
backup_label='START WAL LOCATION: 0/3000028'
begin_time=2026-11-28 10:02:59.836921+00:00
end_time=2026-11-28 10:03:00.348700+00:00
parent_backup_id=20261127T020000
size=33719957
status=DONE
"""


def test_a_record_of_barman() -> None:
    found = keeper.parsed(RECORD)
    assert found.id == "20261128T100259"
    assert not found.full
    assert found.end - found.began == dt.timedelta(microseconds=511779)
    assert found.bytes == 33719957
    assert not found.good, "nobody has read it again yet"
    assert replace(found, verified=True).good
    assert keeper.parsed("backup_id=1\nbegin_time=None\nstatus=EMPTY") is None


def test_what_is_due() -> None:
    """BM-8: a full one a week, an incremental one a day, and what was missed as soon as it can."""
    full = backup(NOON - 3 * DAY)
    today = backup(NOON.replace(hour=HOUR, minute=5), parent=full.id)
    assert keeper.due([], NOON, HOUR, None) == "full"
    assert keeper.due([full], NOON, HOUR, None) == "incremental"
    assert keeper.due([full, today], NOON, HOUR, None) is None
    assert keeper.due([full, today], NOON.replace(hour=1) + DAY, HOUR, None) is None
    assert keeper.due([full, today], NOON.replace(hour=HOUR) + DAY, HOUR, None) == "incremental"
    # Whatever the hour at which the first was taken, the next full one comes at the hour.
    assert keeper.due([full], full.began.replace(hour=HOUR) + 7 * DAY, HOUR, None) == "full"
    assert (
        keeper.due([full], full.began.replace(hour=HOUR) + 7 * DAY - MINUTE, HOUR, None)
        == "incremental"
    )
    # What failed, or is damaged, does not count; nor does what was before a restore.
    assert keeper.due([replace(full, verified=False)], NOON, HOUR, None) == "full"
    assert keeper.due([replace(full, status="FAILED")], NOON, HOUR, None) == "full"
    assert keeper.due([full, today], NOON, HOUR, NOON - MINUTE) == "full"


moments = st.integers(0, 365 * 86400).map(lambda n: NOON + dt.timedelta(seconds=n))


@given(st.lists(moments, max_size=12, unique=True), moments, st.integers(0, 23))
def test_what_was_taken_is_due_no_more(
    began: list[dt.datetime], at: dt.datetime, hour: int
) -> None:
    found = [backup(moment) for moment in sorted(began) if moment <= at]
    kind = keeper.due(found, at, hour, None)
    if kind:
        parent = found[-1].id if kind == "incremental" else None
        assert keeper.due([*found, backup(at, parent=parent)], at, hour, None) is None


@given(st.lists(moments, max_size=12, unique=True), st.lists(moments, max_size=3), moments, moments)
def test_a_chosen_backup_leads_to_the_moment(
    began: list[dt.datetime], restores: list[dt.datetime], at: dt.datetime, target: dt.datetime
) -> None:
    """It ended before it, and no restore lies between."""
    found = [backup(moment) for moment in sorted(began) if moment <= at]
    spans = keeper.spans(found, restores, at, WINDOW)
    try:
        chosen = keeper.chosen(spans, target)
    except keeper.Refused:
        assert not [span for span in spans if span.first <= target <= span.last]
        return
    assert chosen.end <= target <= at
    assert not [moment for moment in restores if chosen.began < moment < target]
    nearer = [item for item in found if chosen.end < item.end <= target]
    assert not nearer or any(chosen.began < moment <= nearer[0].began for moment in restores)


def test_the_window() -> None:
    """BM-8: from the last backup that is older than it; what is older stands by itself."""
    old, edge, new = (backup(NOON - n * DAY) for n in (30, 8, 1))
    (span,) = keeper.spans([old, edge, new], [], NOON, WINDOW)
    assert (span.first, span.last) == (edge.end, NOON)
    assert keeper.chosen([span], NOON - 2 * DAY) is edge
    with pytest.raises(keeper.Refused, match=r"Possible are 2026-03-23 12:01:00 to 2026-03-31 12"):
        keeper.chosen([span], edge.end - MINUTE)


def test_a_history_that_ended_before_the_window() -> None:
    """What is kept of it stands by itself: its WAL is gone."""
    before, after = backup(NOON - 40 * DAY), backup(NOON - 20 * DAY)
    (span,) = keeper.spans([before, after], [NOON - 30 * DAY], NOON, WINDOW)
    assert span.first == after.end


def test_a_restore_begins_another_history() -> None:
    """What was written before it can be had up to it, what came after from the next backup on."""
    before, after = backup(NOON - 2 * DAY), backup(NOON - 1 * DAY + MINUTE)
    found = keeper.spans([before, after], [NOON - 1 * DAY], NOON, WINDOW)
    assert [(item.first, item.last) for item in found] == [
        (before.end, NOON - DAY),
        (after.end, NOON),
    ]
    assert keeper.chosen(found, NOON - DAY) is before
    with pytest.raises(keeper.Refused, match=r"to 2026-03-30 12:00:00, and 2026-03-30 12:02:00 to"):
        keeper.chosen(found, after.end - MINUTE / 2)


def test_what_is_kept_for_long() -> None:
    """BM-8: the first full one of each of four weeks and six months."""
    fulls = [backup(NOON - n * 7 * DAY) for n in range(60, -1, -1)]
    twice = backup(fulls[-1].began + MINUTE)
    daily = [backup(item.began + DAY, parent=item.id) for item in fulls]
    chosen = keeper.lasting([*fulls, twice, *daily], NOON, 4, 6)
    by_week = {item.id for item in fulls[-4:]}
    by_month = {
        f"{moment}T120000" for moment in
        ("20251007", "20251104", "20251202", "20260106", "20260203", "20260303")
    }  # fmt: skip
    assert chosen == by_week | by_month
    assert twice.id not in chosen
    assert keeper.lasting(fulls, NOON, 0, 0) == set()
    bad = [replace(item, verified=False) for item in fulls]
    assert keeper.lasting(bad, NOON, 4, 6) == set()


def test_what_the_window_needs_is_not_kept_by_itself() -> None:
    """Barman counts neither incremental backups nor WAL with what stands by itself."""
    fulls = [backup(NOON - n * DAY) for n in (21, 14, 7.2, 0.2)]
    assert keeper.archived(fulls, NOON, WINDOW) == {fulls[0].id, fulls[1].id}
    assert keeper.archived(fulls[2:], NOON, WINDOW) == set()
    wanted = keeper.lasting(fulls, NOON, 4, 6)
    assert {fulls[0].id, fulls[3].id} <= wanted


@pytest.mark.parametrize("text", ["yesterday", "", "2026-13-01", "12:00"])
def test_no_moment(text: str) -> None:
    """Bad input: says how a moment is written."""
    with pytest.raises(keeper.Refused, match="is no moment: write 2026-03-31"):
        keeper.moment(text)


def test_a_moment_is_utc_unless_it_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    assert keeper.moment("2026-03-31 12:00") == NOON
    assert keeper.moment("2026-03-31T14:00:00+02:00") == NOON
    monkeypatch.undo()
    time.tzset()


WAL = "0000000100000000000000"


class Home(NamedTuple):
    data: Path
    ran: list[tuple[str, ...]]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """Directories of its own, and a note of what would be run."""
    data, base = tmp_path / "data", tmp_path / "barman"
    for path in (data, base / "main" / "meta", base / "main" / "wals", base / "main" / "streaming"):
        path.mkdir(parents=True)
    monkeypatch.setattr(keeper, "DATA", data)
    monkeypatch.setattr(keeper, "HOME", base)
    monkeypatch.setenv("BACKUP_LOGIN", "backup")
    monkeypatch.setattr(keeper, "STATE", keeper.State(base / "keeper.json", **keeper.REMEMBERED))
    ran: list[tuple[str, ...]] = []

    def run(*command: str, **_: Any) -> str:
        ran.append(command)
        return ""

    monkeypatch.setattr(keeper, "run", run)
    (base / "main" / "meta" / "20260330T120000-backup.info").write_text(
        f"begin_time={NOON - DAY}\nend_time={NOON - DAY + MINUTE}\nstatus=DONE\n"
        f"parent_backup_id=None\nsize={5 << 20}\nbegin_wal={WAL}03\n"
    )
    return Home(data, ran)


def test_a_disk_without_room(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bad input: refused before anything is written, and what an earlier try left is gone."""
    left = home.data / "pgdata.restored"
    left.mkdir()
    usage = shutil.disk_usage(home.data)
    monkeypatch.setattr(keeper.shutil, "disk_usage", lambda _: usage._replace(free=4 << 20))
    with pytest.raises(keeper.Refused, match="5 MiB are needed and 4 MiB are free"):
        keeper.lay_out("20260330T120000", "latest")
    assert home.ran == []
    assert list(home.data.iterdir()) == []


def write_info(began: dt.datetime, **fields: str) -> str:
    """Barman's record of one more backup; its id."""
    name = f"{began:%Y%m%dT%H%M%S}"
    facts = {"status": "DONE", "parent_backup_id": "None", "size": str(5 << 20), **fields}
    lines = [f"begin_time={began}", f"end_time={began + MINUTE}", f"begin_wal={WAL}03"]
    lines += [f"{key}={value}" for key, value in facts.items()]
    (keeper.HOME / "main" / "meta" / f"{name}-backup.info").write_text("\n".join(lines))
    return name


def test_room_for_what_is_put_together(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bad input: an incremental backup is put together with its full one, which takes it twice."""
    child = write_info(NOON, parent_backup_id="20260330T120000")
    usage = shutil.disk_usage(home.data)
    monkeypatch.setattr(keeper.shutil, "disk_usage", lambda _: usage._replace(free=19 << 20))
    with pytest.raises(keeper.Refused, match="20 MiB are needed and 19 MiB are free"):
        keeper.lay_out(child, "latest")


def test_nothing_is_left_of_a_failed_restore(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bad input: Barman fails halfway."""

    def run(*command: str, **_: Any) -> str:
        (home.data / "pgdata.restored").mkdir()
        raise keeper.Refused(" ".join(command))

    monkeypatch.setattr(keeper, "run", run)
    with pytest.raises(keeper.Refused, match="--target-immediate"):
        keeper.lay_out("20260330T120000", "")
    assert list(home.data.iterdir()) == []


def test_a_backup_that_is_damaged(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """BM-8: it is removed, and said; one that could not be read is judged another time."""
    said = ["barman ended with 1: ERROR: pg_verifybackup: error: checksum mismatch for file x"]

    def run(*command: str, **_: Any) -> str:
        home.ran.append(command)
        if "verify-backup" in command:
            raise keeper.Refused(said[0])
        return ""

    monkeypatch.setattr(keeper, "run", run)
    with pytest.raises(keeper.Refused, match="20260330T120000 is damaged and was removed"):
        keeper.noted(POLICY)
    assert home.ran[-1][-3:] == ("delete", "main", "20260330T120000")
    assert "is damaged" in keeper.STATE.read()["failing"]["why"]
    said[0] = "barman ended with -9: Calling pg_verifybackup"
    home.ran.clear()
    with pytest.raises(keeper.Refused, match="ended with -9"):
        keeper.noted(POLICY)
    assert [command[3] for command in home.ran] == ["verify-backup"]
    assert keeper.STATE.read()["verified"] == []


def test_what_was_interrupted_is_removed(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """BM-8: a backup that nobody takes any more; once all went well nothing is failing."""
    half = write_info(NOON, status="STARTED", end_time="None")
    waits = write_info(NOON + MINUTE, status="WAITING_FOR_WALS")
    keeper.STATE.update(verified=["20260330T120000"], failing={"at": "then", "why": "no room"})
    monkeypatch.setattr(keeper, "now", lambda: NOON - DAY + 2 * MINUTE)
    keeper.noted(POLICY)
    assert [command[3:] for command in home.ran] == [("delete", "main", half)]
    assert waits not in str(home.ran)
    assert keeper.STATE.read()["failing"] is None


def test_how_it_would_be_restored(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bad input among it: each says where it stops, or that it cannot be."""
    name = "20260330T120000"
    with pytest.raises(keeper.Refused, match="There is no backup that could be restored yet"):
        keeper.plan(POLICY, "latest", "")
    keeper.STATE.update(verified=[name])
    monkeypatch.setattr(keeper, "now", lambda: NOON)
    assert keeper.plan(POLICY, "", name) == {
        "backup": name, "until": "", "moment": "2026-03-30 12:01:00",
    }  # fmt: skip
    assert keeper.plan(POLICY, "latest", "")["moment"] == "the latest there is"
    assert keeper.plan(POLICY, "2026-03-31 11:00", "")["until"] == "2026-03-31T11:00:00+00:00"
    with pytest.raises(keeper.Refused, match="2026-03-31 12:00:01 UTC has not come yet"):
        keeper.plan(POLICY, "2026-03-31 12:00:01", "")
    # A restore of which there is no backup yet: the latest is that of the history before it.
    keeper.STATE.update(restores=[(NOON - MINUTE).isoformat()])
    latest = keeper.plan(POLICY, "latest", "")["moment"]
    assert latest == "2026-03-31 11:59:00, for nothing written since is in a backup"
    with pytest.raises(keeper.Refused, match="no backup yet of the database that runs"):
        keeper.proved(POLICY)
    assert home.ran[-1][3] == "switch-wal"


def test_whole_seconds_of_a_span() -> None:
    """What is said to be possible is: its first second is not before the backup has ended."""
    first = NOON - DAY + dt.timedelta(milliseconds=1)
    span = keeper.Span(first, NOON + dt.timedelta(milliseconds=999), ())
    assert keeper.between(span) == ("2026-03-30 12:00:01", "2026-03-31 12:00:00")


def test_an_archive_with_a_gap(home: Home) -> None:
    """Bad input: a file of WAL that was archived and is gone, of this timeline and since then."""
    archive = keeper.HOME / "main" / "wals"
    (archive / WAL[:16]).mkdir()
    names = [f"{WAL}02", f"{WAL}03", f"{WAL}04", "00000002.history", f"{'0' * 7}2{WAL[8:]}04"]
    (archive / "main-xlog.db").write_text("".join(f"{name}\t1\t1\tgzip\n" for name in names))
    (archive / WAL[:16] / f"{WAL}03").touch()
    with pytest.raises(keeper.Refused, match=f"The archive lacks {WAL}04: "):
        keeper.lay_out("20260330T120000", "latest")
    (archive / WAL[:16] / f"{WAL}04").touch()
    with contextlib.suppress(FileNotFoundError):  # nobody lays out anything here
        keeper.lay_out("20260330T120000", "latest")
    assert home.ran[-1][-2:] == ("20260330T120000", str(home.data / "pgdata.restored"))


@pytest.mark.parametrize("name", ["pgdata", "../data", "pgdata.before-1", "pgdata.restored"])
def test_only_a_database_takes_the_place(home: Home, name: str) -> None:
    """Bad input: nothing is exchanged for what is not there, or is no database."""
    for place in ("pgdata", "pgdata.restored"):
        (home.data / place).mkdir()
    (home.data / "pgdata" / "PG_VERSION").write_text("17\n")
    with pytest.raises(keeper.Refused, match="There is no"):
        keeper.swap(name)
    assert (home.data / "pgdata").is_dir()
    assert home.ran == []


def test_another_version_takes_the_place_by_an_upgrade_alone(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bad input: what was set aside may be of a version that is not the server's."""
    for place, version in (("pgdata", "18"), ("pgdata.before-1", "17")):
        (home.data / place).mkdir()
        (home.data / place / "PG_VERSION").write_text(f"{version}\n")
    with pytest.raises(keeper.Refused, match="make upgrade-postgres TO=17"):
        keeper.swap("pgdata.before-1")
    assert home.ran == []
    monkeypatch.setenv("BACKUP_UPGRADE", "1")
    assert keeper.swap("pgdata.before-1").startswith("pgdata.before-")


def test_where_there_was_no_database(home: Home) -> None:
    """FS-7: a disk that was lost: nothing is set aside, and what the receiver had goes."""
    (home.data / "pgdata.restored").mkdir()
    (home.data / "pgdata.restored" / "PG_VERSION").write_text("17\n")
    partial = keeper.HOME / "main" / "streaming" / "000000010000000000000004.partial"
    partial.touch()
    assert keeper.swap("pgdata.restored") == ""
    assert [path.name for path in home.data.iterdir()] == ["pgdata"]
    assert not partial.exists()
    assert len(keeper.STATE.read()["restores"]) == 1


def test_when_a_restore_is_proved() -> None:
    """Once a day from the hour on, of what was there then; again until it succeeds."""
    night = NOON.replace(hour=4)
    old = backup(night - DAY)
    assert not keeper.drill_due([], NOON, 4, None, None)
    assert not keeper.drill_due([backup(NOON - MINUTE)], NOON, 4, None, None), "tonight, then"
    assert keeper.drill_due([old], NOON, 4, None, None)
    assert keeper.drill_due([old], NOON, 4, None, night - MINUTE)
    assert not keeper.drill_due([old], NOON, 4, None, night + MINUTE)
    assert not keeper.drill_due([replace(old, verified=False)], NOON, 4, None, None)
    assert not keeper.drill_due([old], NOON, 4, night, None), "of another history"
    assert keeper.drill_due([old], NOON, 4, old.began - MINUTE, None)


def marker(name: str, until: dt.datetime) -> Any:
    return keeper.Marker(name, until, until + dt.timedelta(seconds=10))


class Night(NamedTuple):
    home: Home
    says: dict[str, Any]
    """What the database's server answers."""


@pytest.fixture
def night(home: Home, monkeypatch: pytest.MonkeyPatch) -> Night:
    """A drill whose restore and server answer at once."""
    says: dict[str, Any] = {"tables": 3, "megabytes": 30, "last": "", "marker": "b", "dump": {}}
    found = [marker("a", NOON - DAY - MINUTE), marker("b", NOON), marker("c", NOON + MINUTE)]
    keeper.STATE.update(verified=["20260330T120000"])
    monkeypatch.setattr(keeper, "now", lambda: NOON + MINUTE / 2)
    monkeypatch.setattr(keeper, "markers", lambda: found)
    monkeypatch.setattr(keeper, "mark", lambda: None)
    monkeypatch.setattr(keeper, "flush", lambda: None)
    monkeypatch.setattr(keeper.time, "sleep", lambda _: None)

    def lay_out(name: str, until: str, place: Path | None) -> None:
        reached = ("20260330T120000", NOON.isoformat(), None)
        assert (name, until, place) == reached, "the one that can be reached"
        (home.data / "result").write_text(f"noise\n{json.dumps(says)}\n" if says else "")

    monkeypatch.setattr(keeper, "lay_out", lay_out)
    return Night(home, says)


def test_a_drill_that_succeeds(night: Night) -> None:
    """A marker that can be reached is there, and the next one is not; and so it is remembered."""
    found = keeper.proved(POLICY)
    assert found["tables"] == 3
    assert found["until"] == keeper.shown(NOON)
    kept = keeper.STATE.read()["drill"]
    assert dt.datetime.fromisoformat(kept["proved"]) <= keeper.now()
    assert "backup_drill_failing 0\n" in keeper.Status().text()
    assert [path.name for path in night.home.data.iterdir()] == ["result"]


@pytest.mark.parametrize(
    ("says", "cause"),
    [
        ({"marker": "a"}, "ends with marker a, not b"),
        ({"marker": "c"}, "ends with marker c, not b"),
        ({"marker": ""}, "ends with marker , not b"),
        ({"refused": "a page is damaged"}, "a page is damaged"),
        (None, "said nothing that can be read"),
    ],
)
def test_a_drill_that_fails(night: Night, says: dict[str, str] | None, cause: str) -> None:
    """Each turns it red, and what was proved before stays known."""
    keeper.proved(POLICY)
    if says is None:
        night.says.clear()
    else:
        night.says.update(says)
    with pytest.raises(keeper.Refused, match=cause):
        keeper.proved(POLICY)
    text = keeper.Status().text()
    assert "backup_drill_failing 1\n" in text
    assert "backup_drill_last_success_timestamp_seconds 0\n" not in text
    assert cause in keeper.STATE.read()["drill"]["why"]


def test_what_was_copied_while_wal_went_on(home: Home) -> None:
    """FS-7: what has moved meanwhile agrees with itself, and a gap stays one."""
    main = keeper.HOME / "main"
    (main / "wals" / WAL[:16]).mkdir()
    for name in ("03", "05"):
        (main / "wals" / WAL[:16] / f"{WAL}{name}").touch()
    # Whole in the archive by now, as it was not yet; and the one that follows.
    for name in ("05.partial", "06.partial"):
        (main / "streaming" / f"{WAL}{name}").touch()
    names = [f"{WAL}{name}" for name in ("03", "04", "05", "06", "07")]
    listed = main / "wals" / "main-xlog.db"
    listed.write_text("".join(f"{name}\t1\t1\tgzip\n" for name in [*names, "00000002.history"]))
    keeper.settle(keeper.HOME)
    assert [path.name for path in (main / "streaming").iterdir()] == [f"{WAL}06.partial"]
    assert keeper.archived_wal() == [*names[:3], "00000002.history"]
    with pytest.raises(keeper.Refused, match=f"The archive lacks {WAL}04: "):
        keeper.lay_out("20260330T120000", "latest")


def test_a_copy_that_covers_no_marker(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """FS-7: one that was committed when the copy began, and its next one too."""
    keeper.STATE.update(verified=["20260330T120000"])
    monkeypatch.setattr(keeper, "markers", lambda: [marker("a", NOON), marker("b", NOON + MINUTE)])
    found, chosen = keeper.aim(POLICY, NOON + MINUTE, keeper.HOME)
    assert (found.id, chosen.id) == ("a", "20260330T120000")
    with pytest.raises(keeper.Refused, match="There is no marker yet"):
        keeper.aim(POLICY, NOON, keeper.HOME)
    keeper.STATE.update(restores=[(NOON - MINUTE).isoformat()])
    with pytest.raises(keeper.Refused, match="no backup yet of the database that runs"):
        keeper.aim(POLICY, NOON + MINUTE, keeper.HOME)


@pytest.mark.parametrize(
    ("said", "raised"),
    [
        ("path main-18 not found in snapshot", "UncoveredError"),
        ("the key does not open the repository", "Refused"),
    ],
)
def test_a_copy_from_before_the_archive(
    home: Home, monkeypatch: pytest.MonkeyPatch, said: str, raised: str
) -> None:
    """FS-7: another is made where there is none of this version of PostgreSQL, and only there."""

    def fetch(*_: Any) -> None:
        raise keeper.Refused(said)

    monkeypatch.setattr(keeper, "fetch", fetch)
    snapshot = {"snapshot": "b" * 64, "at": NOON.isoformat()}
    with pytest.raises(keeper.Refused, match=said) as refused:
        keeper.look(POLICY, None, snapshot, home.data / "copy", late=MINUTE)
    assert type(refused.value).__name__ == raised


def test_all_that_is_left_is_forgotten(home: Home) -> None:
    """What an upgrade that was killed has left takes room as well; what serves stays."""
    left = ["pgdata.before-20260330T120000Z", "pgdata.rehearsal", "pgdata.restored.unfinished"]
    for name in ("pgdata", ".staging", *left):
        (home.data / name).mkdir()
    assert set(keeper.drop()) == {".staging", *left}
    assert [path.name for path in home.data.iterdir()] == ["pgdata"]


def laid(home: Home, *, cut: bool = False) -> None:
    """What the database's server leaves of a dump."""
    made = home.data / "dump"
    made.mkdir()
    (made / "app.dump").write_text("PGDMP")
    (made / "SHA256SUMS").write_text(f"{hashlib.sha256(b'PGDMP').hexdigest()}  app.dump\n")
    if cut:
        (made / "app.dump").write_text("PG")


def test_dumps_are_kept_for_weeks(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """BM-8: one a week, of what a drill has restored; as many are kept as weeks."""
    at = NOON.replace(hour=4)
    for number in range(6):
        monkeypatch.setattr(keeper, "now", lambda n=number: at + n * 7 * DAY)
        assert keeper.dump_due(POLICY)
        laid(home)
        keeper.keep_dump({"tables": 1, "rows": 2, "of": "then"}, POLICY)
        assert not keeper.dump_due(POLICY)
    assert [path.name for path in keeper.dumps()] == [
        f"{at + n * 7 * DAY:%Y%m%dT%H%M%SZ}" for n in (2, 3, 4, 5)
    ]
    assert list(home.data.iterdir()) == []
    shown = keeper.listing(POLICY)["dumps"][-1]
    assert (shown["of"], shown["rows"], shown["files"]) == ("then", 2, ["app.dump"])
    assert not keeper.dump_due(replace(POLICY, weeks=0))
    keeper.reread_dumps()


def test_a_dump_that_is_cut(home: Home) -> None:
    """Bad input: on its way to the backups, or later; it is removed, and the next is due."""
    laid(home, cut=True)
    with pytest.raises(keeper.Refused, match=r"did not get to the backups whole: app\.dump"):
        keeper.keep_dump({}, POLICY)
    assert keeper.dumps() == []
    laid(home)
    keeper.keep_dump({}, POLICY)
    (kept,) = keeper.dumps()
    (kept / "app.dump").write_text("PG")
    with pytest.raises(keeper.Refused, match=r"is damaged and was removed: app\.dump"):
        keeper.reread_dumps()
    assert keeper.dumps() == []
    assert keeper.dump_due(POLICY)


def test_what_failed_is_tried_again_soon() -> None:
    """BM-8: a busy host refuses the first backup, and not the one half a minute later."""
    assert [keeper.pause(failures) for failures in (1, 2, 3, 9)] == [30, 120, 600, 600]


def test_a_drill_without_its_server(night: Night, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bad input: `drill` is stopped, or was restarted while it was at it."""
    monkeypatch.setattr(keeper, "lay_out", lambda *_: None)
    monkeypatch.setattr(keeper, "PATIENCE", 0)
    with pytest.raises(keeper.Refused, match="does not answer: is it running"):
        keeper.proved(POLICY)
    monkeypatch.setattr(keeper, "PATIENCE", 60)
    request = night.home.data / "request"
    monkeypatch.setattr(keeper.time, "sleep", lambda _: request.unlink(missing_ok=True))
    with pytest.raises(keeper.Refused, match="was restarted meanwhile"):
        keeper.proved(POLICY)


def test_after_a_drill_that_failed_a_backup_is_full(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is built on what could not be restored."""
    taken: list[str] = []
    hurried: list[bool] = []

    def take(kind: str, *, hurry: bool) -> None:
        taken.append(kind)
        hurried.append(hurry)

    monkeypatch.setattr(keeper, "now", lambda: NOON - DAY + 2 * MINUTE)
    monkeypatch.setattr(keeper, "take", take)
    monkeypatch.setattr(keeper, "flush", lambda: None)
    keeper.STATE.update(verified=["20260330T120000"])
    keeper.tend(POLICY)
    assert taken == []
    keeper.tend(POLICY, asked=True)
    keeper.STATE.update(drill={"failed": "now", "why": "a page is damaged"})
    keeper.tend(POLICY, asked=True)
    assert taken == ["incremental", "full"]
    monkeypatch.setattr(keeper, "now", lambda: NOON)
    keeper.tend(POLICY)
    assert hurried == [True, True, False], "nobody waits for what is taken by itself"
    keeper.STATE.update(restores=[(NOON - MINUTE).isoformat()])
    keeper.tend(POLICY)
    assert (taken[-1], hurried[-1]) == ("full", True), "nothing of this history is in a backup"
    assert home.ran == []


def test_what_was_received_is_restored_too(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """FS-7: whole files are archived first; the one that Barman leaves behind is copied."""
    streaming = keeper.HOME / "main" / "streaming"
    for number in (4, 5):
        (streaming / f"{WAL}0{number}").write_text(str(number))
    target = home.data / "pgdata.restored" / "barman_wal"

    def run(*command: str, **_: Any) -> str:
        home.ran.append(command)
        if "archive-wal" in command:
            (streaming / f"{WAL}04").unlink()
        if "restore" in command:
            target.mkdir(parents=True)
        return ""

    monkeypatch.setattr(keeper, "run", run)
    monkeypatch.setattr(keeper.time, "sleep", lambda _: None)
    keeper.lay_out("20260330T120000", "latest")
    assert [path.name for path in target.iterdir()] == [f"{WAL}05"]
    assert [command[3] for command in home.ran] == ["archive-wal", "restore"]


def test_what_is_said_to_prometheus(home: Home) -> None:
    """BM-6: nothing good yet is a failure only once PostgreSQL's WAL does not come."""
    status = keeper.Status()
    status.receiving = True
    assert "backup_failing 0\n" in status.text()
    assert "backup_last_success_timestamp_seconds 0\n" in status.text()
    keeper.STATE.update(verified=["20260330T120000"])
    ended = int((NOON - DAY + MINUTE).timestamp())
    assert f"backup_last_success_timestamp_seconds {ended}\n" in status.text()
    assert 'backup_backups{kind="full"} 1\n' in status.text()
    keeper.STATE.update(failing={"at": "now", "why": "no room"})
    assert "backup_failing 1\n" in status.text()
    keeper.STATE.update(failing=None)
    status.receiving = False
    assert "backup_failing 1\n" in status.text()
    assert home.ran == []
