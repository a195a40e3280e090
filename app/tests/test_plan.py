"""BM-2: who gets a message, and when; whatever users, clocks and schedulers do."""

from __future__ import annotations

import datetime
import itertools
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compose_app.birthdays import celebration
from compose_app.birthdays.celebration import between, moved
from compose_app.birthdays.messages import MessageStore
from compose_app.birthdays.store import UserStore, UserValues
from compose_app.db import Database
from conftest import Backends

UTC = datetime.UTC
HOUR = datetime.timedelta(hours=1)
DAY = datetime.timedelta(days=1)
AHEAD = 2 * DAY
CATCH_UP = 40 * DAY
START = datetime.datetime(2027, 2, 20, 12, tzinfo=UTC)
ZONES = (
    *("Pacific/Kiritimati", "Etc/GMT+12", "Europe/London", "America/New_York", "Asia/Kathmandu"),
    *("Australia/Lord_Howe", "Pacific/Chatham", "UTC"),
)


class World:
    """Users and a scheduler's store, and a clock that is set by hand."""

    def __init__(self, backends: Backends, now: datetime.datetime = START) -> None:
        self.now = now
        self.backends = backends
        url = backends.environ["DATABASE_URL"]
        self._database = Database(url, "app-password")
        self.users = UserStore(self._database, lambda: self.now)
        self.messages = MessageStore(url, "app-password", "test")
        self._number = itertools.count()
        with backends.connect() as connection:
            connection.execute("TRUNCATE users, birthday_messages, birthday_outbox")
            connection.execute("UPDATE birthday_plan SET planned_until = %s", (now,))

    def close(self) -> None:
        self._database.close()
        self.messages.close()

    def values(self, birthday: datetime.date, zone: str) -> UserValues:
        return UserValues(
            first_name="Ada",
            last_name="Lovelace",
            birthday=birthday,
            time_zone=zone,
            email=f"{next(self._number)}@example.org",
        )

    def create(self, birthday: datetime.date, zone: str = "UTC") -> int:
        number: int = self.users.create(self.values(birthday, zone))["id"]
        return number

    def change(self, user: int, birthday: datetime.date, zone: str = "UTC") -> None:
        self.users.replace(user, self.values(birthday, zone))

    def turn(self) -> list[tuple[int, int, datetime.datetime]]:
        """What a scheduler does, until nothing is left: (user, year, due) of what it enqueued."""
        while not self.messages.plan(self.now, self.now + AHEAD, self.now - CATCH_UP)[1]:
            pass
        while self.messages.enqueue(self.now, 100):
            pass
        with self.backends.connect() as connection:
            found = connection.execute(
                "SELECT user_id, year, due_at FROM birthday_outbox"
                " JOIN birthday_messages ON birthday_messages.id = message_id"
            ).fetchall()
        self.messages.published(self.messages.outbox(10_000))
        return found

    def planned(self) -> list[tuple[Any, ...]]:
        with self.backends.connect() as connection:
            return connection.execute(
                "SELECT user_id, year, due_at, state FROM birthday_messages ORDER BY user_id, year"
            ).fetchall()


@pytest.fixture
def world(clean: Backends) -> Iterator[World]:
    world = World(clean)
    yield world
    world.close()


def at(text: str) -> datetime.datetime:
    return datetime.datetime.fromisoformat(text).replace(tzinfo=UTC)


def test_planned_ahead_and_enqueued_when_due(world: World) -> None:
    """BM-2: 48 hours ahead, at nine o'clock there, and once."""
    user = world.create(datetime.date(1980, 2, 24), "America/New_York")
    world.create(datetime.date(1980, 8, 1))
    assert (world.turn(), world.planned()) == ([], [])
    due = at("2027-02-24 14:00")
    world.now = due - AHEAD
    assert world.turn() == []
    assert world.planned() == [(user, 2027, due, "planned")]
    world.now = due - HOUR / 3600
    assert world.turn() == []
    world.now = due
    assert world.turn() == [(user, 2027, due)]
    assert world.turn() == []
    world.now += 30 * DAY
    assert world.turn() == []


def test_what_was_missed_is_sent(world: World) -> None:
    """BM-2: after an outage of days, each once; nothing that is older than is caught up with."""
    users = [world.create(datetime.date(1990, 2, day)) for day in (21, 22, 25, 28)]
    leap = world.create(datetime.date(1992, 2, 29))
    world.now = at("2027-03-02 00:00")
    assert {user for user, _, _ in world.turn()} == {*users, leap}
    old = world.create(datetime.date(1990, 3, 3))
    recent = world.create(datetime.date(1990, 3, 30))
    world.now = at("2027-03-03 10:00") + CATCH_UP
    assert {user for user, _, _ in world.turn()} == {recent}
    assert old not in {row[0] for row in world.planned()}


def test_planned_and_then_too_old(world: World) -> None:
    """BM-2: what had been planned before a long outage is no exception."""
    world.create(datetime.date(1990, 2, 21))
    world.turn()
    assert len(world.planned()) == 1
    world.now += CATCH_UP + 2 * DAY
    assert (world.turn(), world.planned()) == ([], [])


def test_created_within_the_plan(world: World) -> None:
    """BM-2: on the day itself before nine, yes; after nine, or born that day, not this year."""
    world.turn()
    world.now = at("2027-02-21 08:59")
    early = world.create(datetime.date(1990, 2, 21))
    world.create(datetime.date(2027, 2, 21))
    world.now = at("2027-02-21 09:01")
    world.create(datetime.date(1990, 2, 21))
    assert [user for user, _, _ in world.turn()] == [early]
    world.now = at("2028-02-21 09:00")
    with world.backends.connect() as connection:
        connection.execute("UPDATE birthday_plan SET planned_until = %s", (world.now - DAY,))
    assert len(world.turn()) == 3


def test_created_while_nobody_plans(world: World) -> None:
    """BM-2: as when somebody does: before nine yes, after it no, once it is planned."""
    world.now = at("2027-02-21 08:59")
    early = world.create(datetime.date(1990, 2, 21))
    world.now = at("2027-02-21 09:01")
    world.create(datetime.date(1990, 2, 21))
    assert [user for user, _, _ in world.turn()] == [early]


@pytest.mark.parametrize(
    ("birthday", "zone", "sent"),
    [
        # Planned for 09:00 UTC on the 22nd; changed at 08:00.
        ((1990, 2, 22), "Asia/Tokyo", ["2027-02-22 00:00"]),  # overtaken: at once
        ((1990, 2, 22), "America/New_York", ["2027-02-22 14:00"]),
        ((1990, 2, 23), "UTC", ["2027-02-23 09:00"]),
        ((1990, 2, 25), "UTC", ["2027-02-25 09:00"]),  # planned by and by
        ((1990, 2, 21), "UTC", []),  # over
        ((1990, 2, 10), "UTC", []),
        ((2027, 2, 22), "UTC", []),  # born, not celebrated
    ],
)
def test_changes_before_it_is_due(
    world: World, birthday: tuple[int, int, int], zone: str, sent: list[str]
) -> None:
    """BM-2: what is planned follows."""
    user = world.create(datetime.date(1990, 2, 22))
    world.turn()
    world.now = at("2027-02-22 08:00")
    world.turn()
    world.change(user, datetime.date(*birthday), zone)
    enqueued = []
    for _ in range(100):
        enqueued += world.turn()
        world.now += HOUR
    assert enqueued == [(user, 2027, at(moment)) for moment in sent]


def test_change_after_it_was_sent(world: World) -> None:
    """BM-2: one message a year."""
    user = world.create(datetime.date(1990, 2, 21), "Pacific/Kiritimati")
    world.turn()
    world.now = at("2027-02-20 19:00")
    assert len(world.turn()) == 1
    world.change(user, datetime.date(1990, 2, 21), "Etc/GMT+12")
    world.change(user, datetime.date(1990, 2, 22), "UTC")
    for _ in range(5):
        world.now += DAY
        assert world.turn() == []


def test_change_during_an_outage(world: World) -> None:
    """BM-2: a message nobody had planned yet is owed all the same."""
    user = world.create(datetime.date(1990, 2, 25), "Europe/London")
    world.now = at("2027-02-28 00:00")
    world.change(user, datetime.date(1990, 2, 25), "Asia/Tokyo")
    assert world.turn() == [(user, 2027, at("2027-02-25 00:00"))]


def test_change_of_zone_while_nobody_plans(world: World) -> None:
    """BM-2: a message that the change makes due, and that nobody had planned, is owed."""
    world.now = at("2027-02-25 11:00")
    user = world.create(datetime.date(1990, 2, 25), "America/New_York")
    with world.backends.connect() as connection:
        connection.execute("DELETE FROM birthday_messages")
        connection.execute("UPDATE birthday_plan SET planned_until = %s", (world.now,))
    world.now += HOUR
    world.change(user, datetime.date(1990, 2, 25), "Asia/Tokyo")
    assert world.turn() == [(user, 2027, at("2027-02-25 00:00"))]


def test_clock_that_had_run_ahead(world: World) -> None:
    """BM-2: by years, with a plan made meanwhile: nothing is missed when it is right again."""
    user = world.create(datetime.date(1990, 3, 10))
    world.now += 3 * 365 * DAY
    world.turn()
    world.now = at("2027-03-09 12:00")
    late = world.create(datetime.date(1990, 3, 10))
    world.turn()
    world.now = at("2027-03-10 09:00")
    assert {found for found, year, _ in world.turn() if year == 2027} == {user, late}


def test_replayed_though_it_is_old(world: World) -> None:
    """BM-3: what was in the queue once is not dropped for its age, nor moved."""
    user = world.create(datetime.date(1990, 2, 21))
    world.now = at("2027-02-21 09:00")
    world.turn()
    with world.backends.connect() as connection:
        connection.execute("UPDATE birthday_messages SET state = 'dead', attempts = 8")
    world.now += CATCH_UP + 2 * DAY
    assert world.messages.replay(world.now, None) == 1
    world.change(user, datetime.date(1990, 12, 24))
    world.messages.plan(world.now, world.now + AHEAD, world.now - CATCH_UP)
    assert [found for found, _, _ in world.turn()] == [user]


def test_tables_without_rows(world: World) -> None:
    """BM-10: as in a rehearsal: users can be created and changed, and a plan begins."""
    with world.backends.connect() as connection:
        connection.execute("DELETE FROM birthday_plan")
    user = world.create(datetime.date(1990, 2, 21))
    world.change(user, datetime.date(1990, 2, 22))
    world.turn()
    assert [row[0] for row in world.planned()] == [user]


def test_deleted_user(world: World) -> None:
    """BM-2: gets none."""
    user = world.create(datetime.date(1990, 2, 21))
    world.turn()
    assert world.users.delete(user)
    world.now += 2 * DAY
    assert world.turn() == []


_STEPS = st.one_of(
    st.tuples(st.just("wait"), st.integers(1, 60)),
    st.tuples(st.just("jump"), st.integers(-100, 100)),
    st.tuples(st.just("turn"), st.just(0)),
    st.tuples(st.just("zone"), st.integers(0, 99)),
    st.tuples(st.just("birthday"), st.integers(0, 99)),
    st.tuples(st.just("delete"), st.integers(0, 99)),
    st.tuples(st.just("create"), st.integers(0, 99)),
)
_BORN = st.builds(
    lambda year, day: datetime.date(year, 2, 1) + day * DAY,
    st.sampled_from([1980, 1991, 2027]),
    st.integers(15, 45),
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    people=st.lists(st.tuples(_BORN, st.sampled_from(ZONES)), min_size=1, max_size=5),
    steps=st.lists(st.tuples(_STEPS, _BORN, st.sampled_from(ZONES)), max_size=25),
)
def test_each_once(
    clean: Backends,
    people: list[tuple[datetime.date, str]],
    steps: list[tuple[tuple[str, int], datetime.date, str]],
) -> None:
    """BM-2: zone changes, clock jumps, outages: at most one a year, none early, none missed."""
    world = World(clean)
    try:
        _simulate(world, people, steps)
    finally:
        world.close()


def _simulate(
    world: World,
    people: list[tuple[datetime.date, str]],
    steps: list[tuple[tuple[str, int], datetime.date, str]],
) -> None:
    current: dict[int, tuple[datetime.date, str]] = {}
    zones: dict[int, set[str]] = defaultdict(set)
    created: dict[int, datetime.datetime] = {}
    moved_birthday: set[int] = set()
    got: Counter[tuple[int, int]] = Counter()
    latest = world.now

    def create(birthday: datetime.date, zone: str) -> None:
        # A birthday may lie ahead in these tests; the API would not take it.
        user = world.create(birthday, zone)
        current[user] = birthday, zone
        zones[user].add(zone)
        created[user] = world.now

    def turn() -> None:
        nonlocal latest
        latest = max(latest, world.now)
        for user, year, due in world.turn():
            got[user, year] += 1
            birthday, zone = current[user]
            # None is early, by what holds now.
            assert due == celebration.celebration(birthday, zone, year).due_at <= world.now

    for birthday, zone in people:
        create(birthday, zone)
    for (what, number), birthday, zone in steps:
        alive = sorted(current)
        user = alive[number % len(alive)] if alive else 0
        match what:
            case "wait":
                world.now += number * HOUR
            case "jump":
                world.now += number * HOUR
            case "turn":
                turn()
            case "create":
                create(birthday, zone)
            case "zone" if alive:
                current[user] = current[user][0], zone
                zones[user].add(zone)
                world.change(user, *current[user])
            case "birthday" if alive:
                current[user] = birthday, current[user][1]
                moved_birthday.add(user)
                world.change(user, *current[user])
            case "delete" if alive:
                world.users.delete(user)
                del current[user]
    world.now = max(world.now, latest) + HOUR
    turn()
    assert all(times == 1 for times in got.values())
    for user in current.keys() - moved_birthday:
        birthday, _ = current[user]
        years = {year for owner, year in got if owner == user}
        held = [
            {item.day.year for item in between(birthday, zone, created[user], latest)}
            for zone in zones[user]
        ]
        # Due under every zone the user has had: it came. Under none: it did not.
        assert set.intersection(*held) <= years <= set.union(*held)


def test_users_come_while_it_is_planned(clean: Backends) -> None:
    """BM-2: nobody falls between the plan and the one who plans."""
    world = World(clean)
    everybody: list[list[int]] = []
    stop = threading.Event()

    def come(number: int) -> None:
        database = Database(clean.environ["DATABASE_URL"], "app-password")
        users = UserStore(database, lambda: world.now)
        count = 0
        created: list[int] = []
        everybody.append(created)
        while not stop.is_set():
            values = world.values(datetime.date(1990, 2, 21) + count % 12 * DAY, "UTC")
            values["email"] = f"{number}-{count}@x.org"
            created.append(users.create(values)["id"])
            values["birthday"] = datetime.date(1990, 2, 21) + (count * 5 + 1) % 12 * DAY
            if count % 2:
                users.replace(created[-1], values)
            count += 1
        database.close()

    threads = [threading.Thread(target=come, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    start = world.now
    for hours in range(200):
        world.messages.plan(start, start + hours * HOUR, start - CATCH_UP)
    stop.set()
    for thread in threads:
        thread.join()
    world.messages.plan(start, start + 200 * HOUR, start - CATCH_UP)
    with clean.connect() as connection:
        missing = connection.execute(
            "SELECT count(*) FROM (SELECT id, (birthday + interval '37 years 9 hours')"
            " AT TIME ZONE 'UTC' AS due FROM users) AS expected"
            " LEFT JOIN birthday_messages ON user_id = expected.id AND due_at = due"
            " WHERE due <= %s AND user_id IS NULL",
            (start + 199 * HOUR,),
        ).fetchone()
    world.close()
    assert sum(len(created) for created in everybody) > 100
    assert missing == (0,)


def test_moved() -> None:
    """BM-2: a year of birth has no celebration, whatever was planned."""
    planned = celebration.celebration(datetime.date(1990, 2, 22), "UTC", 2027)
    now = planned.due_at - HOUR
    assert moved(datetime.date(2027, 2, 22), "UTC", planned, now) is None
    assert moved(datetime.date(2026, 2, 22), "UTC", planned, now) == planned
