"""Keeps PostgreSQL's backups by Barman, and lays out what is to be restored.

    keeper.py serve         receive WAL, back up when it is due, say how it goes on /metrics
    keeper.py backup        take a backup now
    keeper.py drill         restore to a random moment, apart from all, and see that it is right
    keeper.py flush         have all that is committed in the archive
    keeper.py list          what can be restored
    keeper.py settle        have an archive agree with itself that was copied while it was written
    keeper.py plan          how a moment or a backup would be restored, or why not
    keeper.py lay-out       restore it beside the running database
    keeper.py swap NAME     have that directory served, and set aside what was
    keeper.py drop          remove what was set aside
    keeper.py healthy       whether `serve` answers

What is due is judged by what is there: nothing is scheduled, so nothing is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import hashlib
import io
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from dataclasses import dataclass, replace
from multiprocessing.connection import Client, Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keeping import (
    EVERY,
    Refused,
    State,
    alone,
    answered,
    ask_health,
    gauges,
    now,
    pause,
    run,
    say,
    serve_metrics,
    shown,
)  # fmt: skip

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

HOME = Path("/var/lib/barman")
DATA = Path("/var/lib/postgresql/data")
SERVER = os.environ.get("BACKUP_SERVER", "main")
"""Barman's name of the server; each version of PostgreSQL has an archive of its own."""
CONFIG = Path("/etc/compose-stack/current/config/barman.conf")
BARMAN = ("barman", "--config", str(CONFIG))
OFFSITE = Path("/run/offsite/socket")
"""Where the keeper of the off-site copy gives what lies there."""
PORT = 9120
LIVE, RESTORED, ASIDE = "pgdata", "pgdata.restored", "pgdata.before-"
WEEK = dt.timedelta(days=7)
SEGMENT = 16 << 20
"""Bytes of one file of WAL, which the archive has compressed."""
PATIENCE = 60
"""Seconds within which a request for a drill is taken."""
LONGEST = 6 * 3600
"""Seconds that trying what was restored may take."""
MARK = 900
"""Seconds between two markers, between which a drill can tell."""
PIECE = 1 << 17
"""Bytes that come at once of an off-site copy."""
ON_ITS_WAY = dt.timedelta(minutes=1)
"""What was committed so long before a copy began must be in it."""


@dataclass(frozen=True)
class Policy:
    """What is kept, and when backups are taken."""

    hour: int
    """Hour of the day (UTC) at which the day's backup is due."""
    days: int
    """Days of which every moment can be restored."""
    weeks: int
    months: int
    drill_hour: int
    """Hour of the day (UTC) from which on a restore is proved."""
    copied: int = 0
    """1 where there is an off-site copy: it is proved of that, and else of the archive."""

    @property
    def window(self) -> dt.timedelta:
        return dt.timedelta(days=self.days)

    @classmethod
    def from_environment(cls) -> Policy:
        names = ("HOUR", "DAYS", "WEEKS", "MONTHS", "DRILL_HOUR", "COPIED")
        return cls(*(int(os.environ[f"BACKUP_{name}"]) for name in names))


@dataclass(frozen=True)
class Backup:
    """One backup, as Barman describes it; times are aware."""

    id: str
    status: str
    parent: str | None
    began: dt.datetime
    end: dt.datetime
    """From when on it can be restored; while it is being taken, when it began."""
    wal: str
    """First file of WAL that it needs."""
    bytes: int = 0
    verified: bool = False

    @property
    def full(self) -> bool:
        return self.parent is None

    @property
    def good(self) -> bool:
        return self.status == "DONE" and self.verified


@dataclass(frozen=True)
class Span:
    """Moments that can be restored, and the backups that lead to them."""

    first: dt.datetime
    last: dt.datetime
    backups: tuple[Backup, ...]


# -- what is there ------------------------------------------------------------------------------


REMEMBERED: dict[str, Any] = {"verified": [], "restores": [], "failing": None, "drill": {}}
STATE = State(HOME / "keeper.json", **REMEMBERED)
"""What the keeper remembers beside Barman's own records."""


def parsed(text: str) -> Backup | None:
    """A backup from the text of its backup.info; None before it has begun."""
    fields = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)

    def moment(name: str) -> dt.datetime | None:
        value = fields.get(name, "None")
        return None if value == "None" else dt.datetime.fromisoformat(value)

    began = moment("begin_time")
    if began is None:
        return None
    parent, size = fields.get("parent_backup_id", "None"), fields.get("size", "None")
    return Backup(
        id=fields["backup_id"],
        status=fields["status"],
        parent=None if parent == "None" else parent,
        began=began,
        end=moment("end_time") or began,
        wal=fields.get("begin_wal", ""),
        bytes=0 if size == "None" else int(size),
    )


def backups(home: Path | None = None) -> list[Backup]:
    """All of them, the oldest first."""
    verified = set(STATE.read()["verified"])
    found = []
    for path in ((home or HOME) / SERVER / "meta").glob("*-backup.info"):
        with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
            if backup := parsed(f"backup_id={path.name[:-12]}\n{path.read_text()}"):
                found.append(replace(backup, verified=backup.id in verified))
    return sorted(found, key=lambda item: item.began)


def kept(backup: str) -> bool:
    """Whether a backup is kept beyond the window."""
    return (HOME / SERVER / "meta" / f"{backup}-keep").exists()


def spans(
    found: Sequence[Backup],
    restores: Sequence[dt.datetime],
    at: dt.datetime,
    window: dt.timedelta,
) -> list[Span]:
    """Moments that can be restored, oldest first.

    A restore ends what came before: from then on the database has another history, which begins
    with the first backup after it.
    """
    ends = sorted(item for item in restores if item < at)
    bounds = [dt.datetime.min.replace(tzinfo=dt.UTC), *ends, at]
    result = []
    for first, last in itertools.pairwise(bounds):
        mine = [item for item in found if item.good and first <= item.began < last]
        # Of what ended before the window no WAL is left.
        if not mine or last <= at - window:
            continue
        # Of what is older, only what is kept by itself remains, without the WAL after it.
        old = [item for item in mine if item.end <= at - window]
        rest = mine[mine.index(old[-1]) :] if old else mine
        result.append(Span(rest[0].end, last, tuple(rest)))
    return result


def oclock(at: dt.datetime, hour: int) -> dt.datetime:
    """When it was last that hour."""
    today = at.replace(hour=hour, minute=0, second=0, microsecond=0)
    return today if today <= at else today - dt.timedelta(days=1)


def week_over(at: dt.datetime, hour: int, last: dt.datetime | None) -> bool:
    """Whether what is made once a week is due, from the hour on."""
    return last is None or oclock(at, hour) - oclock(last, hour) >= WEEK


def drill_due(
    found: Sequence[Backup],
    at: dt.datetime,
    hour: int,
    since: dt.datetime | None,
    proved: dt.datetime | None,
) -> bool:
    """Whether a restore is to be proved: once a day, from the hour on, of what was there then.

    Of the history that the database has now; `since` is the last restore.
    """
    return any(item.end < oclock(at, hour) for item in present(found, since)) and (
        proved is None or proved < oclock(at, hour)
    )


def present(found: Sequence[Backup], since: dt.datetime | None) -> list[Backup]:
    """Good backups of the history that the database has now; `since` is the last restore."""
    return [item for item in found if item.good and (since is None or item.began >= since)]


def due(
    found: Sequence[Backup], at: dt.datetime, hour: int, since: dt.datetime | None
) -> str | None:
    """Which backup is due: "full", "incremental" or none; `since` is the last restore."""
    mine = present(found, since)
    fulls = [item for item in mine if item.full]
    if week_over(at, hour, fulls[-1].began if fulls else None):
        return "full"
    return "incremental" if mine[-1].began < oclock(at, hour) else None


def lasting(found: Sequence[Backup], at: dt.datetime, weeks: int, months: int) -> set[str]:
    """Full backups to keep beyond the window: the first of each week and of each month."""
    fulls = [item for item in found if item.full and item.good]
    first_of_week: dict[tuple[int, int], Backup] = {}
    first_of_month: dict[tuple[int, int], Backup] = {}
    for item in fulls:
        year, week, _ = item.began.isocalendar()
        first_of_week.setdefault((year, week), item)
        first_of_month.setdefault((item.began.year, item.began.month), item)
    monday = at.date() - dt.timedelta(days=at.weekday())
    this_week = [(monday - n * WEEK).isocalendar()[:2] for n in range(weeks)]
    month = at.year * 12 + at.month - 1
    this_month = [((month - n) // 12, (month - n) % 12 + 1) for n in range(months)]
    chosen = [first_of_week.get(key) for key in this_week]
    chosen += [first_of_month.get(key) for key in this_month]
    return {item.id for item in chosen if item is not None}


def archived(found: Sequence[Backup], at: dt.datetime, window: dt.timedelta) -> set[str]:
    """Full backups that the window needs no more.

    Only these may be marked as kept: with what stands by itself, Barman counts neither incremental
    backups nor WAL.
    """
    old = [item for item in found if item.full and item.good and item.end <= at - window]
    return {item.id for item in old[:-1]}


# -- Barman and PostgreSQL ----------------------------------------------------------------------


def barman(verb: str, *arguments: str) -> str:
    return run(*BARMAN, verb, SERVER, *arguments)


def query(sql: str) -> str:
    connection = f"{SIGNED_IN} user={login()}"
    return run("psql", "-XAtq", "-d", connection, "-c", sql, seconds=30).strip()


PASSWORDS = Path("/tmp/pgpass")  # noqa: S108  memory of its own
SIGNED_IN = f"host=postgres dbname=postgres passfile={PASSWORDS} connect_timeout=5"


def login() -> str:
    return os.environ["BACKUP_LOGIN"]


def write_passwords() -> None:
    """Where libpq looks for the password: in memory, for this user alone."""
    password = Path("/run/secrets/postgres_backup_password").read_text().strip()
    escaped = password.replace("\\", "\\\\").replace(":", "\\:")
    descriptor = os.open(PASSWORDS, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(f"*:*:*:{login()}:{escaped}\n")


# -- backing up ---------------------------------------------------------------------------------


def restores() -> list[dt.datetime]:
    return [dt.datetime.fromisoformat(text) for text in STATE.read()["restores"]]


def last_restore() -> dt.datetime | None:
    return max(restores(), default=None)


def take(kind: str, *, hurry: bool) -> Backup:
    """Take a backup and read it again; in a hurry, PostgreSQL writes down at once what it must.

    Otherwise it takes its time for that, some minutes, and nobody notices.

    Raises:
        Refused: it could not be taken, or is not what it should be.
    """
    options = ["--incremental", "last-full"] if kind == "incremental" else []
    options.append("--immediate-checkpoint" if hurry else "--no-immediate-checkpoint")
    barman("backup", "--wait", "--wait-timeout", "600", *options)
    newest = backups()[-1]
    return verify(newest)


def verify(backup: Backup) -> Backup:
    """Hold a backup against its manifest; one that differs is removed."""
    try:
        barman("verify-backup", backup.id)
    except Refused as error:
        if "pg_verifybackup: error" not in str(error):  # it could not be read, for now
            raise
        barman("delete", backup.id)
        raise Refused(f"backup {backup.id} is damaged and was removed: {error}") from None
    verified = STATE.read()["verified"]
    there = {item.id for item in backups()}
    STATE.update(verified=[item for item in verified if item in there] + [backup.id])
    return replace(backup, verified=True)


def tend(policy: Policy, *, asked: bool = False) -> Backup | None:
    """Take what is due, or a backup now when asked; keep and remove as the policy says."""
    with alone(HOME / ".keeper.lock"):
        for item in backups():
            # Nobody else backs up now: whatever is unfinished was interrupted.
            if item.status not in ("DONE", "WAITING_FOR_WALS"):
                barman("delete", item.id)
            elif item.status == "DONE" and not item.verified:
                verify(item)
        keep(policy)
        found, restored = backups(), last_restore()
        kind = due(found, now(), policy.hour, restored)
        if kind is None and asked:
            # Nothing is built on what could not be restored.
            kind = "full" if "failed" in STATE.read()["drill"] else "incremental"
        if kind is None:
            return None
        first = not present(found, restored)
        if first:
            # Barman refuses to back up what it has received no whole file of WAL of.
            flush()
        return take(kind, hurry=asked or first)


def keep(policy: Policy) -> None:
    """Mark what is to outlive the window, and give free what need not any more."""
    found, at = backups(), now()
    wanted = lasting(found, at, policy.weeks, policy.months)
    wanted &= archived(found, at, dt.timedelta(days=policy.days))
    for item in found:
        if item.full and item.status == "DONE" and kept(item.id) is not (item.id in wanted):
            change = ["--target", "standalone"] if item.id in wanted else ["--release"]
            barman("keep", *change, item.id)


def noted(policy: Policy, *, asked: bool = False) -> Backup | None:
    """As `tend`, and remember whether it failed.

    Raises:
        Refused: it failed.
    """
    try:
        taken = tend(policy, asked=asked)
    except Refused as error:
        STATE.update(failing={"at": now().isoformat(), "why": str(error)})
        raise
    STATE.update(failing=None)
    return taken


def flush() -> None:
    """Have everything that is committed in the archive, closed by a commit of this moment."""
    query("SELECT pg_logical_emit_message(true, 'compose-stack', 'flush')")
    barman("switch-wal", "--force", "--archive", "--archive-timeout", "60")


class Receiver(threading.Thread):
    """Receives WAL all the time, and begins again when that ends."""

    def __init__(self) -> None:
        super().__init__(daemon=True)

    def run(self) -> None:
        while True:
            # Not through `run`: it lives as long as the server does.
            subprocess.run([*BARMAN, "receive-wal", SERVER], check=False)
            time.sleep(2)


# -- proving that it can be restored ------------------------------------------------------------


def mark() -> None:
    """Leave a row by which a drill can tell where its recovery has stopped; forget old ones."""
    query("INSERT INTO drill.markers DEFAULT VALUES")
    query("DELETE FROM drill.markers WHERE at < now() - interval '2 days'")


@dataclass(frozen=True)
class Marker:
    id: str
    until: dt.datetime
    """A moment between its commit and that of the next one."""
    next: dt.datetime
    """When that was committed, by which a recovery knows that it is past the moment."""


def markers() -> list[Marker]:
    """All that have a next one, the oldest first."""
    rows = query("SELECT id, extract(epoch FROM at) FROM drill.markers ORDER BY at")
    found = [line.split("|") for line in rows.splitlines()]
    at = [dt.datetime.fromtimestamp(float(text), dt.UTC) for _, text in found]
    pairs = zip(found, itertools.pairwise(at), strict=False)
    return [Marker(name, first + (then - first) / 2, then) for (name, _), (first, then) in pairs]


def dumps() -> list[Path]:
    """The logical dumps that are kept, the oldest first."""
    return sorted((HOME / "dumps").glob("[0-9]*"))


def differing(dump: Path) -> list[str]:
    """Files of a dump that are not what was written."""
    try:
        sums = [line.split(maxsplit=1) for line in (dump / "SHA256SUMS").read_text().splitlines()]
    except FileNotFoundError:
        sums = []
    wrong = [] if sums else ["SHA256SUMS"]
    for digest, name in sums:
        try:
            with (dump / name).open("rb") as file:
                same = hashlib.file_digest(file, "sha256").hexdigest() == digest
        except FileNotFoundError:
            same = False
        wrong += [] if same else [name]
    return wrong


def reread_dumps() -> None:
    """Hold each dump against its checksums; one that differs is removed.

    Raises:
        Refused: one was.
    """
    for dump in dumps():
        if wrong := differing(dump):
            discard(dump)
            raise Refused(f"Dump {dump.name} is damaged and was removed: {', '.join(wrong)}.")


def dump_due(policy: Policy) -> bool:
    found = dumps()
    last = dt.datetime.strptime(found[-1].name, "%Y%m%dT%H%M%S%z") if found else None
    return policy.weeks > 0 and week_over(now(), policy.drill_hour, last)


def keep_dump(facts: dict[str, Any], policy: Policy) -> None:
    """Put a dump to the others, and remove those that are too old.

    Raises:
        Refused: it did not get there whole.
    """
    made, fresh = DATA / "dump", HOME / "dumps" / ".new"
    discard(fresh)
    try:
        shutil.copytree(made, fresh)
        if wrong := differing(fresh):
            raise Refused(f"The dump did not get to the backups whole: {', '.join(wrong)}.")
        (fresh / "dump.json").write_text(json.dumps(facts))
        os.sync()
        fresh.rename(fresh.with_name(f"{now():%Y%m%dT%H%M%SZ}"))
    finally:
        discard(made, fresh)
    found = dumps()
    discard(*found[: max(0, len(found) - policy.weeks)])


class UncoveredError(Refused):
    """An archive leads to no marker."""


def aim(policy: Policy, at: dt.datetime, home: Path | None = None) -> tuple[Marker, Backup]:
    """A random marker of those that an archive covered at a moment, and the backup to it.

    Raises:
        UncoveredError: it covers none.
    """
    found, restored = spans(backups(home), restores(), at, policy.window), last_restore()
    if not found or (restored and found[-1].first < restored):
        raise UncoveredError("There is no backup yet of the database that runs.")
    possible = [item for item in markers() if found[-1].first <= item.until and item.next <= at]
    if not possible:
        raise UncoveredError("There is no marker yet since the first backup.")
    marker = random.choice(possible)  # noqa: S311  nobody gains by guessing it
    return marker, chosen(found, marker.until)


def tried(words: Sequence[str]) -> dict[str, Any]:
    """What the service `drill` says of what is laid out.

    Raises:
        Refused: it does not say anything.
    """
    request, taken, result = DATA / "request", DATA / "taken", DATA / "result"
    try:
        fresh = request.with_suffix(".new")
        fresh.write_text(" ".join(words))
        fresh.rename(request)
        asked = time.monotonic()
        while not result.exists():
            if not request.exists() and not taken.exists() and not result.exists():
                raise Refused("The service `drill` was restarted meanwhile.")
            if request.exists() and time.monotonic() - asked > PATIENCE:
                raise Refused("The service `drill` does not answer: is it running?")
            if time.monotonic() - asked > LONGEST:
                raise Refused(f"The service `drill` was not done after {LONGEST // 3600} hours.")
            time.sleep(0.5)
        found: dict[str, Any] = json.loads(result.read_text().splitlines()[-1])
    except (ValueError, IndexError):
        raise Refused("The drill's database server said nothing that can be read.") from None
    finally:
        request.unlink(missing_ok=True)
    return found


def drill(policy: Policy) -> dict[str, Any]:
    """Restore to a random marker, apart from everything, and hold the result against it.

    From the off-site copy where there is one, else from the archive. Once a week what was restored
    is dumped: the running database has no work with that, and nobody who may read its tables.

    Raises:
        Refused: it could not be restored, or is not what it should be.
    """
    reread_dumps()
    for _ in range(2):
        mark()
        time.sleep(1)
    mark()
    flush()
    asked = time.monotonic()
    while (DATA / "taken").exists():  # by a drill whose keeper went away
        if time.monotonic() - asked > LONGEST:
            raise Refused("The service `drill` is still at an earlier drill: restart it.")
        time.sleep(1)
    (DATA / "result").unlink(missing_ok=True)
    home = DATA / "copy" if policy.copied else None
    brought: dict[str, Any] = {}
    discard(DATA / RESTORED, DATA / ".staging", DATA / "copy")
    try:
        if home:
            marker, backup, brought = bring(policy, home)
        else:
            marker, backup = aim(policy, now())
        lay_out(backup.id, marker.until.isoformat(), home)
        discard(DATA / "copy")
        found = tried(["dump"] if dump_due(policy) else [])
    finally:
        discard(DATA / RESTORED, DATA / "copy")
    if "refused" in found:
        discard(DATA / "dump")
        raise Refused(str(found["refused"]))
    if found["marker"] != marker.id:
        raise Refused(f"What was restored ends with marker {found['marker']}, not {marker.id}.")
    if found["dump"]:
        keep_dump({**found["dump"], "of": shown(marker.until)}, policy)
    return {**found, **brought, "backup": backup.id, "until": shown(marker.until)}


# -- from the off-site copy ---------------------------------------------------------------------


class Pieces(io.RawIOBase):
    """What comes of one request, to be read as a file."""

    def __init__(self, peer: Connection, **asked: Any) -> None:
        self.peer = peer
        self.rest = b""
        self.ended = False
        peer.send_bytes(json.dumps(asked).encode())

    def received(self) -> bytes:
        try:
            if self.peer.poll(LONGEST):
                return self.peer.recv_bytes()
        except (EOFError, OSError):
            raise Refused("The service `offsite` was stopped meanwhile.") from None
        raise Refused(f"The service `offsite` has said nothing for {LONGEST // 3600} hours.")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self.rest and not self.ended:
            self.rest = self.received()
            self.ended = not self.rest
        count = min(len(buffer), len(self.rest))
        buffer[:count], self.rest = self.rest[:count], self.rest[count:]
        return count

    def end(self) -> dict[str, Any]:
        """What is said after all pieces.

        Raises:
            Refused: that it could not be had.
        """
        while self.read(PIECE):
            pass
        said: dict[str, Any] = json.loads(self.received())
        if "refused" in said:
            raise Refused(f"From the off-site copy: {said['refused']}")
        return said


def fetch(peer: Connection, snapshot: str, path: str, home: Path) -> None:
    """Bring a file, or a directory (which ends with a slash), of the backups from a snapshot.

    Raises:
        Refused: it cannot be had.
    """
    pieces = Pieces(peer, snapshot=snapshot, path=path)
    target = home / path
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        if path.endswith("/"):
            target.mkdir(exist_ok=True)
            with tarfile.open(fileobj=pieces, mode="r|", bufsize=PIECE) as tar:
                for member in tar:
                    member.name = member.name.removeprefix("source/backup/")
                    tar.extract(member, home, filter="data")
        else:
            with target.open("wb") as file:
                shutil.copyfileobj(pieces, file)
    except tarfile.TarError as error:
        pieces.end()  # which has the reason, most likely
        raise Refused(f"From the off-site copy: {path} is no archive: {error}") from None
    pieces.end()


def bring(policy: Policy, home: Path) -> tuple[Marker, Backup, dict[str, Any]]:
    """Bring from the newest snapshot what a restore to a random marker needs: a home of Barman's.

    Raises:
        Refused: it cannot be had, is not whole, or there is no room for it.
    """
    try:
        peer = Client(str(OFFSITE), "AF_UNIX")
    except OSError:
        raise Refused("The service `offsite` does not answer: is it running?") from None
    with peer:
        snapshot = Pieces(peer).end()
        try:
            marker, backup = look(policy, peer, snapshot, home, late=ON_ITS_WAY)
        except UncoveredError:  # it may be from before the last restore, or the first backup
            # All that is committed is in the archive since the drill has begun.
            snapshot = Pieces(peer, copy=True).end()
            marker, backup = look(policy, peer, snapshot, home, late=dt.timedelta(0))
        name = str(snapshot["snapshot"])
        for part in ("streaming/", f"wals/{SERVER}-xlog.db"):
            fetch(peer, name, f"{SERVER}/{part}", home)
        needed = chain(backup.id, home)
        wal = wal_since(needed[0], home)
        dump = copied_dump(snapshot["at"])
        dumped = sum(path.stat().st_size for path in dump.iterdir()) if dump else 0
        wanted = size(needed, wal) + dumped + room(needed, wal)
        if wanted > (free := shutil.disk_usage(DATA).free):
            raise Refused(
                f"For what comes from the off-site copy, and what is restored from it, "
                f"{wanted >> 20} MiB are needed and {free >> 20} MiB are free: make room on that "
                "disk (`backup_drill_dir`)."
            )
        for item in needed:
            fetch(peer, name, f"{SERVER}/base/{item.id}/", home)
        for directory in sorted({path.parent.name for path in wal}):
            fetch(peer, name, f"{SERVER}/wals/{directory}/", home)
        for history in [name for name in archived_wal(home) if name.endswith(".history")]:
            fetch(peer, name, f"{SERVER}/wals/{history}", home)
        if dump:
            fetch(peer, name, f"dumps/{dump.name}/", home)
            if wrong := differing(home / "dumps" / dump.name):
                raise Refused(f"In the copy dump {dump.name} is damaged: {', '.join(wrong)}.")
    settle(home)
    text = CONFIG.read_text().replace(f"barman_home = {HOME}\n", f"barman_home = {home}\n")
    (home / "barman.conf").write_text(text)
    copied = shown(dt.datetime.fromisoformat(snapshot["at"]))
    return marker, backup, {"snapshot": name[:8], "copied": copied}


def look(
    policy: Policy, peer: Connection, snapshot: dict[str, Any], home: Path, *, late: dt.timedelta
) -> tuple[Marker, Backup]:
    """What is to be restored of a snapshot, into which all had come that was so much older.

    Raises:
        UncoveredError: it does not cover any marker.
    """
    discard(home)
    at = dt.datetime.fromisoformat(snapshot["at"])
    try:
        fetch(peer, str(snapshot["snapshot"]), f"{SERVER}/meta/", home)
        return aim(policy, at - late, home)
    except Refused as error:
        # As before the first copy with the archive of another version of PostgreSQL.
        if not isinstance(error, UncoveredError) and "not found in snapshot" not in str(error):
            raise
        raise UncoveredError(f"In the off-site copy of {shown(at)} UTC: {error}") from None


def copied_dump(at: str) -> Path | None:
    """The newest dump that was there when a copy began."""
    stamp = f"{dt.datetime.fromisoformat(at).astimezone(dt.UTC):%Y%m%dT%H%M%SZ}"
    return max((path for path in dumps() if path.name < stamp), default=None)


def settle(home: Path) -> None:
    """Have what was copied while WAL went on agree with itself.

    First what is received was read, then what is archived, and last the list of that.
    """
    wals = home / SERVER / "wals"
    received = {path.stem: path for path in (home / SERVER / "streaming").glob("0*")}
    there = {path.name for path in wals.glob("*/*")}
    for name in there & set(received):
        received[name].unlink()
    last = max(there | set(received), default="")
    if not (wals / f"{SERVER}-xlog.db").exists():  # nothing has been archived yet
        return
    lines = (wals / f"{SERVER}-xlog.db").read_text().splitlines(keepends=True)
    names = [line.split()[0] for line in lines]
    # What is neither there nor the end of all is a gap: it stays on the list, and is missed.
    gone = {name for name in names if "." not in name and name not in there and name >= last}
    text = "".join(line for line, name in zip(lines, names, strict=True) if name not in gone)
    (wals / f"{SERVER}-xlog.db").write_text(text)


def proved(policy: Policy) -> dict[str, Any]:
    """As `drill`, and remember how it went.

    Raises:
        Refused: it failed.
    """
    with alone(HOME / ".drill.lock"):
        began, last = time.monotonic(), STATE.read()["drill"]
        try:
            found = drill(policy)
        except (Refused, OSError, LookupError) as error:
            STATE.update(drill={**last, "failed": now().isoformat(), "why": str(error)})
            raise Refused(str(error)) from error
        seconds = round(time.monotonic() - began, 1)
        STATE.update(drill={"proved": now().isoformat(), "seconds": seconds, **found})
        return {**found, "seconds": seconds}


class Driller(threading.Thread):
    """Proves once a day that a restore works."""

    def __init__(self, policy: Policy) -> None:
        super().__init__(daemon=True)
        self.policy = policy

    def run(self) -> None:
        marked, failures = 0.0, 0
        while True:
            wait = EVERY
            try:
                if time.monotonic() - marked > MARK:
                    mark()
                    marked = time.monotonic()
                drilled = STATE.read()["drill"]
                text = None if "failed" in drilled else drilled.get("proved")
                last = dt.datetime.fromisoformat(text) if text else None
                if drill_due(backups(), now(), self.policy.drill_hour, last_restore(), last):
                    found = proved(self.policy)
                    say(f"restore of {found['until']} proved in {found['seconds']} s")
                failures = 0
            except (Refused, OSError) as error:
                say(str(error))
                failures += 1
                wait = pause(failures)
            time.sleep(wait)


def receiving() -> bool:
    """Whether PostgreSQL sends its WAL here."""
    slots = "SELECT active FROM pg_replication_slots WHERE slot_name = 'backup'"
    try:
        return query(slots) == "t"
    except Refused:
        return False


def serve(policy: Policy) -> None:
    write_passwords()
    # Makes its directories, which the receiver takes for given.
    subprocess.run([*BARMAN, "check", SERVER], capture_output=True, check=False)
    Receiver().start()
    Driller(policy).start()
    status = Status()
    serve_metrics(PORT, status.text)
    next_try, failures = 0.0, 0
    while True:
        status.receiving = receiving()
        if not status.receiving:
            time.sleep(1)
            continue
        # First, as what is kept must be marked before what is old is removed.
        if time.monotonic() >= next_try:
            try:
                taken = noted(policy)
                failures = 0
                if taken:
                    say(f"backup {taken.id} taken and verified")
            except Refused as error:
                say(str(error))
                failures += 1
                next_try = time.monotonic() + pause(failures)
        # With the descriptors of this process: a pipe would wait for what it leaves behind.
        subprocess.run([*BARMAN, "cron", "--keep-descriptors"], check=False)
        time.sleep(min(EVERY, max(1, next_try - time.monotonic())) if failures else EVERY)


class Status:
    """What the keeper says of itself on /metrics."""

    def __init__(self) -> None:
        self.receiving = False

    def text(self) -> str:
        good = [item for item in backups() if item.good]
        failing = STATE.read()["failing"] is not None or not self.receiving
        newest = good[-1].end.timestamp() if good else 0
        oldest = good[0].end.timestamp() if good else 0
        used = sum(item.bytes for item in good)
        drill = STATE.read()["drill"]
        last = dt.datetime.fromisoformat(drill["proved"]).timestamp() if "proved" in drill else 0
        return gauges(
            {
                "backup_drill_last_success_timestamp_seconds": int(last),
                "backup_drill_failing": int("failed" in drill),
                "backup_drill_duration_seconds": drill.get("seconds", 0),
                "backup_drill_rows": drill.get("rows", 0),
                "backup_drill_from_copy": int("snapshot" in drill),
                "backup_last_success_timestamp_seconds": int(newest),
                "backup_oldest_timestamp_seconds": int(oldest),
                "backup_failing": int(failing),
                "backup_receiving": int(self.receiving),
                "backup_size_bytes": used,
                "backup_backups": {
                    'kind="full"': sum(item.full for item in good),
                    'kind="incremental"': sum(not item.full for item in good),
                },
            }
        )


# -- restoring ----------------------------------------------------------------------------------


def moment(text: str) -> dt.datetime:
    """A moment as an operator writes it; UTC unless it says otherwise.

    Raises:
        Refused: nobody can tell what is meant.
    """
    try:
        found = dt.datetime.fromisoformat(text.strip())
    except ValueError:
        raise Refused(
            f"'{text}' is no moment: write 2026-03-31 03:15:00 (UTC), 2026-03-31T05:15:00+02:00 "
            "or latest"
        ) from None
    return found if found.tzinfo else found.replace(tzinfo=dt.UTC)


def between(span: Span) -> tuple[str, str]:
    """Whole seconds within a span."""
    return shown(span.first + dt.timedelta(microseconds=999_999)), shown(span.last)


def possible(found: Sequence[Span]) -> str:
    if not found:
        return "There is no backup that could be restored yet"
    return "Possible are " + ", and ".join(" to ".join(between(span)) for span in found)


def chosen(found: Sequence[Span], at: dt.datetime) -> Backup:
    """The backup from which a moment is reached.

    Raises:
        Refused: no backup leads there; the text says which moments can be had.
    """
    for span in found:
        if span.first <= at <= span.last:
            return [item for item in span.backups if item.end <= at][-1]
    raise Refused(f"{shown(at)} UTC cannot be restored. {possible(found)} (UTC).")


def known_spans(policy: Policy) -> list[Span]:
    return spans(backups(), restores(), now(), policy.window)


def plan(policy: Policy, when: str, backup: str) -> dict[str, Any]:
    """How it would be restored: the backup to begin with, and where to stop.

    Raises:
        Refused: it cannot be.
    """
    found = known_spans(policy)
    if backup:
        all_good = {item.id: item for item in backups() if item.good}
        if backup not in all_good:
            names = ", ".join(all_good) or "none"
            raise Refused(f"There is no backup {backup}. There are: {names}.")
        return {"backup": backup, "until": "", "moment": shown(all_good[backup].end)}
    if when == "latest":
        if not found:
            raise Refused(possible(found) + ".")
        restored = last_restore()
        last = "the latest there is"
        if restored and found[-1].first < restored:
            last = f"{shown(found[-1].last)}, for nothing written since is in a backup"
        return {"backup": found[-1].backups[-1].id, "until": "latest", "moment": last}
    at = moment(when)
    if at > now():
        raise Refused(f"{shown(at)} UTC has not come yet.")
    return {"backup": chosen(found, at).id, "until": at.isoformat(), "moment": shown(at)}


def chain(backup: str, home: Path | None = None) -> list[Backup]:
    """A backup and those that it needs."""
    by_id = {item.id: item for item in backups(home)}
    result = [by_id[backup]]
    while (parent := result[-1].parent) is not None:
        result.append(by_id[parent])
    return result


def archive(home: Path | None = None) -> list[Path]:
    """Have the whole files of WAL that were received in the archive, with or without PostgreSQL.

    Of those that are not in it, Barman restores only what follows the last that is. It always
    leaves one file where it was received: if that is a whole one, it is returned.

    Raises:
        Refused: they do not get there.
    """
    for _ in range(30):
        received = sorted(((home or HOME) / SERVER / "streaming").glob("0*"))
        whole = [path for path in received if not path.suffix]
        if not whole or received == whole[-1:]:
            return whole
        run(*of(home), "archive-wal", SERVER)  # does nothing while another process is at it
        time.sleep(1)
    raise Refused("What was received does not get into the archive: the log of `backup` says why.")


def archived_wal(home: Path | None = None) -> list[str]:
    """Names of all that was archived, histories of timelines among them."""
    try:
        lines = ((home or HOME) / SERVER / "wals" / f"{SERVER}-xlog.db").read_text().splitlines()
    except FileNotFoundError:
        return []
    return [line.split()[0] for line in lines]


def wal_since(backup: Backup, home: Path | None = None) -> list[Path]:
    """Files of WAL that have been archived since a backup, of its timeline."""
    names = archived_wal(home)
    mine = [name for name in names if name[:8] == backup.wal[:8] and name >= backup.wal]
    return [(home or HOME) / SERVER / "wals" / name[:16] / name for name in mine if "." not in name]


def size(needed: Sequence[Backup], wal: Sequence[Path]) -> int:
    """Bytes of backups and WAL."""
    return sum(item.bytes for item in needed) + len(wal) * SEGMENT


def room(needed: Sequence[Backup], wal: Sequence[Path]) -> int:
    """Bytes that laying it out takes."""
    # Put together in the staging directory first, where there is more than one.
    return size(needed, wal) + (sum(item.bytes for item in needed) if len(needed) > 1 else 0)


def of(home: Path | None) -> tuple[str, ...]:
    """Barman, of another home than its own."""
    return BARMAN if home is None else ("barman", "--config", str(home / "barman.conf"))


def lay_out(backup: str, until: str, home: Path | None = None) -> None:
    """Restore beside the running database, ready to be started; of another home of Barman's.

    Raises:
        Refused: there is no room, or Barman failed; nothing is left of it.
    """
    target = DATA / RESTORED
    staging = DATA / ".staging"
    discard(target, staging)
    received = archive(home)
    needed = chain(backup, home)
    wal = wal_since(needed[0], home)
    wanted, free = room(needed, wal), shutil.disk_usage(DATA).free
    missing = [path.name for path in wal if not path.exists()]
    if missing:
        raise Refused(
            f"The {'copy' if home else 'archive'} lacks {', '.join(missing)}: what was written "
            "from then on cannot be restored from this backup. `make backups` lists others, for "
            "BACKUP=<id>."
        )
    if wanted > free:
        raise Refused(
            f"Beside the database {wanted >> 20} MiB are needed and {free >> 20} MiB are free: "
            "make room on that disk (`make forget` removes what earlier restores set aside)."
        )
    options = ["--target-tli", "current", "--target-action", "promote"]
    if until == "latest":
        options = ["--target-tli", "current", "--partial-wal"]
    elif until:
        options += ["--target-time", until, "--partial-wal"]
    else:
        options += ["--target-immediate"]
    try:
        staging.mkdir()
        staged = ["--staging-path", str(staging), "--staging-location", "local"]
        run(
            *of(home),
            "restore",
            *staged,
            *options,
            SERVER,
            backup,
            str(target),
            TMPDIR=str(staging),
        )
        for path in received:
            shutil.copy(path, target / "barman_wal" / path.name)
        target.chmod(0o700)
    except Refused:
        discard(target)
        raise
    finally:
        discard(staging)


def discard(*paths: Path) -> None:
    for path in paths:
        if path.exists():
            shutil.rmtree(path)


def aside() -> list[str]:
    """What was set aside, the oldest first."""
    return sorted(path.name for path in DATA.glob(f"{ASIDE}*"))


def swap(name: str) -> str:
    """Have a directory served in place of the one that was; the name of that one, set aside.

    No server may run. The exchange is one system call: whatever interrupts it, there is always a
    database in place.

    Raises:
        Refused: there is no such directory, no database in it, or one of another version, which
            an upgrade alone exchanges.
    """
    source = DATA / name
    if name != RESTORED and name not in aside():
        raise Refused(f"There is no {name}. Set aside are: {', '.join(aside()) or 'none'}.")
    if not (source / "PG_VERSION").is_file():
        raise Refused(f"There is no database in {name}.")
    version, there = (source / "PG_VERSION").read_text().strip(), DATA / LIVE / "PG_VERSION"
    same = not there.exists() or there.read_text().strip() == version
    if not same and "BACKUP_UPGRADE" not in os.environ:
        raise Refused(
            f"{name} is of PostgreSQL {version}: `make upgrade-postgres TO={version}` is for that."
        )
    with alone(HOME / ".keeper.lock"):
        # First: a disk that cannot be written is noticed while nothing has changed.
        STATE.update(restores=[*STATE.read()["restores"], now().isoformat()])
        live, gone = DATA / LIVE, ""
        if live.exists():
            # Its name first, so that the exchange alone decides which is which.
            gone = f"{ASIDE}{now():%Y%m%dT%H%M%SZ}"
            named = source.rename(DATA / gone)
            run("mv", "--exchange", "--no-copy", "--no-target-directory", str(named), str(live))
        else:
            source.rename(live)
        os.sync()
        # What comes is another history, and the receiver goes on from its server's slot.
        for path in (HOME / SERVER / "streaming").glob("*"):
            path.unlink()
    return gone


def drop() -> list[str]:
    # What was laid out or carried over, whole or not, is called pgdata.re...
    left = sorted(path.name for path in (*DATA.glob("pgdata.re*"), *DATA.glob(".staging")))
    gone = [*aside(), *left]
    discard(*(DATA / name for name in gone))
    return gone


def listed(dump: Path) -> dict[str, Any]:
    facts = {"name": dump.name, "of": "", "tables": 0, "rows": 0}
    with contextlib.suppress(FileNotFoundError, ValueError):
        facts.update(json.loads((dump / "dump.json").read_text()))
    files = sorted(path for path in dump.iterdir() if path.suffix in (".dump", ".sql"))
    megabytes = sum(path.stat().st_size for path in files) >> 20
    return {**facts, "files": [path.name for path in files], "megabytes": megabytes}


def listing(policy: Policy) -> dict[str, Any]:
    """What can be restored, for people to read."""
    return {
        "possible": [between(span) for span in known_spans(policy)],
        "backups": [
            {**told(item), "at": shown(item.end), "kept": kept(item.id), "good": item.good}
            for item in backups()
        ],
        "dumps": [listed(path) for path in dumps()],
        "aside": aside(),
        "failing": STATE.read()["failing"],
        "drill": STATE.read()["drill"],
    }


def main(words: Sequence[str]) -> Any:
    parser = argparse.ArgumentParser()
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("serve", "backup", "drill", "flush", "list", "settle", "drop", "healthy"):
        verbs.add_parser(verb)
    for verb in ("plan", "lay-out"):
        chooser = verbs.add_parser(verb)
        chooser.add_argument("--backup", default="")
        chooser.add_argument("--until", default="")
    verbs.add_parser("swap").add_argument("name")
    asked = parser.parse_args(words)
    policy = Policy.from_environment()
    answers: dict[str, Callable[[], Any]] = {
        "serve": lambda: serve(policy),
        "backup": lambda: told(noted(policy, asked=True)),
        "drill": lambda: proved(policy),
        "flush": flush,
        "list": lambda: listing(policy),
        "settle": lambda: settle(HOME),
        "plan": lambda: plan(policy, asked.until, asked.backup),
        "lay-out": lambda: lay_out(asked.backup, asked.until),
        "swap": lambda: {"aside": swap(asked.name)},
        "drop": lambda: {"dropped": drop()},
        "healthy": lambda: ask_health(PORT),
    }
    return answers[asked.verb]()


def told(taken: Backup | None) -> dict[str, Any]:
    return {"id": taken.id, "full": taken.full, "megabytes": taken.bytes >> 20} if taken else {}


if __name__ == "__main__":
    answered(lambda: main(sys.argv[1:]))
