"""UT-4: the aggregator and what it keeps."""

from __future__ import annotations

import datetime
import threading
import uuid
from collections import defaultdict
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compose_app import migrate
from compose_app.config import AggregatorSettings, ConfigError, MigrationSettings
from compose_app.usage import aggregator
from compose_app.usage.aggregator import Aggregator
from compose_app.usage.rollups import RollupStore
from compose_app.usage.store import Queued, UsageStore
from conftest import Backends
from test_usage import KEEP

NOW = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
UNITS = {"usage_minutes": "minute", "usage_hours": "hour", "usage_days": "day"}


@pytest.fixture
def store(clean: Backends) -> Iterator[UsageStore]:
    store = UsageStore(clean.environ["DATABASE_URL"], "app-password")
    yield store
    store.close()


def rollups(backends: Backends) -> RollupStore:
    return RollupStore(backends.environ["DATABASE_URL"], "app-password")


def work(backends: Backends, **changes: str) -> Aggregator:
    environ = {**backends.environ, **KEEP, **changes}
    return Aggregator(rollups(backends), AggregatorSettings.from_environ(environ))


def queued(time: datetime.datetime, quantity: float = 1, tenant: str = "a", name: str = "") -> Any:
    return Queued("1-1", 0, [name or uuid.uuid4().hex, tenant, "m", quantity, time.isoformat()])


def table(backends: Backends, name: str) -> list[tuple[Any, ...]]:
    with backends.connect() as connection:
        return connection.execute(
            f"SELECT tenant, metric, bucket, quantity, events FROM {name}"
            " ORDER BY tenant, metric, bucket"
        ).fetchall()


def floor(moment: datetime.datetime, unit: str) -> datetime.datetime:
    zeroes = {"second": 0, "microsecond": 0}
    if unit != "minute":
        zeroes["minute"] = 0
    if unit == "day":
        zeroes["hour"] = 0
    return moment.replace(**zeroes)  # type: ignore[arg-type]


# Seconds before now, many of them at the edges of buckets; late by days, too.
_AGO = st.one_of(st.integers(0, 30 * 86400), st.sampled_from([0, 59, 60, 61, 3599, 3600, 86400]))
_EVENTS = st.tuples(st.sampled_from("abcdefgh"), st.sampled_from("xy"), _AGO, st.integers(0, 9))


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    batches=st.lists(st.lists(_EVENTS, min_size=1, max_size=6), min_size=1, max_size=6),
    portion=st.integers(1, 5),
    forgotten=st.integers(0, 6),
)
def test_sum_of_what_was_counted(
    clean: Backends,
    store: UsageStore,
    monkeypatch: pytest.MonkeyPatch,
    batches: list[list[tuple[str, str, int, int]]],
    portion: int,
    forgotten: int,
) -> None:
    """UT-4: late, repeated, in whatever portions, and though the events are gone: each once."""
    monkeypatch.setattr("compose_app.usage.rollups.PORTION", portion)
    with clean.connect() as connection:
        connection.execute(
            "TRUNCATE usage_events, usage_event_ids, usage_rejected, usage_minutes, usage_hours,"
            " usage_days, usage_changes"
        )
    expected: dict[str, dict[Any, list[Any]]] = {
        name: defaultdict(lambda: [Decimal(0), 0]) for name in UNITS
    }
    seen = set()
    adder = rollups(clean)
    for number, batch in enumerate(batches):
        store.add(
            [
                queued(NOW - datetime.timedelta(seconds=ago), quantity, tenant, name)
                for name, tenant, ago, quantity in batch
            ]
        )
        for name, tenant, ago, quantity in batch:
            if (name, tenant) not in seen:
                seen.add((name, tenant))
                for rollup, unit in UNITS.items():
                    bucket = floor(NOW - datetime.timedelta(seconds=ago), unit)
                    entry = expected[rollup][(tenant, "m", bucket)]
                    entry[0] += quantity
                    entry[1] += 1
        if number == forgotten:
            with clean.connect() as connection:
                connection.execute("TRUNCATE usage_events")
        adder.add()
    while adder.add():
        pass
    adder.close()
    for rollup in UNITS:
        got = {tuple(row[:3]): list(row[3:]) for row in table(clean, rollup)}
        assert got == expected[rollup], rollup


def test_two_at_once(clean: Backends, store: UsageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """UT-4: two aggregators beside a processor add everything, once."""
    monkeypatch.setattr("compose_app.usage.rollups.PORTION", 7)
    done = threading.Event()
    faults: list[Exception] = []

    def aggregate() -> None:
        adder = rollups(clean)
        try:
            while adder.add() or not done.is_set():
                pass
        except psycopg.Error as error:
            faults.append(error)
        adder.close()

    runners = [threading.Thread(target=aggregate) for _ in range(2)]
    for runner in runners:
        runner.start()
    for n in range(150):
        store.add(
            [
                queued(NOW - datetime.timedelta(minutes=m), tenant=t)
                for m in range(n % 9)
                for t in "ab"
            ]
        )
    done.set()
    for runner in runners:
        runner.join()
    while rollups(clean).add():
        pass
    assert faults == []
    with clean.connect() as connection:
        for name in ("usage_events", *UNITS):
            what = "count(*)" if name == "usage_events" else "sum(events)"
            row = connection.execute(f"SELECT {what} FROM {name}").fetchone()
            assert row == (2 * sum(n % 9 for n in range(150)),), name


def test_another_holds_the_lock(clean: Backends, store: UsageStore) -> None:
    """UT-4: the second of two does nothing but tell how far the first is behind."""
    store.add([queued(NOW)])
    second = work(clean)
    with clean.connect("app", "app-password") as connection, connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (0x7573616765,))
        assert second.step() == aggregator.INTERVAL
        assert table(clean, "usage_days") == []
        assert aggregator.OLDEST._value.get() > 0
    second.step()
    second.step()
    assert len(table(clean, "usage_days")) == 1
    assert aggregator.OLDEST._value.get() == 0
    second.leave()


def test_closed_table(clean: Backends, store: UsageStore) -> None:
    """UT-4: what cannot be added is in none of the roll-ups, shows its age, and is added later."""
    store.add([queued(NOW)])
    running = work(clean)
    with clean.connect() as connection:
        connection.execute("REVOKE INSERT ON usage_days FROM app")
        try:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                running.step()
            running.lost()
            assert aggregator.OLDEST._value.get() > 0
            assert [table(clean, name) for name in UNITS] == [[], [], []]
        finally:
            connection.execute("GRANT INSERT ON usage_days TO app")
    running.step()
    running.leave()
    assert [len(table(clean, name)) for name in UNITS] == [1, 1, 1]


def test_old_is_dropped(clean: Backends, store: UsageStore) -> None:
    """UT-4: what is older than it is kept goes, chunk by chunk; days stay, and so do sums."""
    old, late = NOW - datetime.timedelta(days=200), NOW - datetime.timedelta(days=30)
    store.add([queued(moment, name=name) for moment, name in ((old, "old"), (late, "late"))])
    store.add([queued(NOW)])
    running = work(clean)
    running.step()
    assert [len(table(clean, name)) for name in UNITS] == [2, 3, 3]
    with clean.connect() as connection:
        assert connection.execute("SELECT count(*) FROM usage_events").fetchone() == (2,)
        assert connection.execute("SELECT count(*) FROM usage_event_ids").fetchone() == (2,)
    # As late as may be: into chunks that are there, once.
    store.add([queued(late, name="late"), queued(late, quantity=4)])
    running.step()
    assert [row[3:] for row in table(clean, "usage_days")] == [(1, 1), (5, 2), (1, 1)]
    assert running.step() == aggregator.INTERVAL
    running.leave()


def test_only_usage_may_be_dropped(clean: Backends) -> None:
    """UT-4: the application's role drops chunks of these tables and no others."""
    with clean.connect("app", "app-password") as connection:
        with pytest.raises(psycopg.errors.RaiseException, match="items is not one of usage"):
            connection.execute("SELECT drop_usage_chunks('items', now())")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("SELECT drop_chunks('usage_events', now())")
    with clean.connect() as connection:
        everyone = (
            "has_function_privilege('public', 'drop_usage_chunks(text, timestamptz)', 'EXECUTE')"
        )
        assert connection.execute(f"SELECT {everyone}").fetchone() == (False,)


def test_events_from_before_the_roll_ups(clean: Backends, store: UsageStore) -> None:
    """UT-4: what was counted before the migration is in them."""
    from alembic import command
    from sqlalchemy import create_engine

    url = clean.environ["MIGRATION_DATABASE_URL"].replace("app_owner@", "app_owner:owner-password@")
    store.add([queued(NOW, 2), queued(NOW, 3)])
    store.close()
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    try:
        with engine.begin() as connection:
            command.downgrade(migrate.alembic_config(connection), "0004")
        store.add([queued(NOW, 4)])
        store.close()
    finally:
        assert migrate.main(MigrationSettings.from_environ(clean.environ)) == 0
        engine.dispose()
    adder = rollups(clean)
    adder.add()
    adder.close()
    assert [row[3:] for row in table(clean, "usage_minutes")] == [(9, 3)]


@pytest.mark.parametrize("name", [name for name in KEEP if "KEEP" in name])
def test_no_room_for_late_events(clean: Backends, name: str) -> None:
    """UT-4: an event that may still come must find its bucket whole."""
    with pytest.raises(ConfigError, match="USAGE_LATE_DAYS must be less than each"):
        AggregatorSettings.from_environ({**clean.environ, **KEEP, name: "35"})
