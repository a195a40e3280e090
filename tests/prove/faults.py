"""The faults: each is made for real, and undone.

A fault is a generator that makes it, yields while the alerts are awaited, and undoes it. Nothing
here touches a rule, a metric or an answer: what breaks is the service itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import requests

from tests.harness import wait_for
from tests.prove.world import DATA, DIRECTORY, ENGINE, FLOOD, PROJECT, PSQL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.prove.world import World

    Make = Callable[[World], Iterator[None]]


@dataclass(frozen=True)
class Expected:
    """An alert that a fault must bring: its labels, and after how long a metric can show it."""

    alert: str
    severity: str
    labels: dict[str, str] = field(default_factory=dict)
    shows: float = 0

    @property
    def key(self) -> tuple[str, str]:
        return self.alert, self.severity


@dataclass(frozen=True)
class Fault:
    """What is broken, and after which other faults are over."""

    name: str
    what: str
    make: Callable[[World], contextlib.AbstractContextManager[None]]
    expected: tuple[Expected, ...]
    after: tuple[str, ...]
    first: bool


FAULTS: dict[str, Fault] = {}
NO_ARCHIVE = "needs a release archive in vendor/, which the proof does not have"
EXCEPTIONS = {
    ("HostMemoryLow", "warning"): (
        "needs 90 % of the machine's memory, which other programs on it use"
    ),
    ("FilesystemFillingUp", "warning"): (
        "must hold for an hour, longer than the whole proof; it differs from FilesystemFull, "
        "which is delivered, in its expression alone"
    ),
    **dict.fromkeys(
        [
            ("AcmeDown", "warning"),
            ("AcmeFailing", "warning"),
            ("AcmeCertificateExpiring", "critical"),
        ],
        "the proof's certificate is its own; tests/acme takes the authority away, and looks at "
        "the figures that these are made of",
    ),
    ("BackupOld", "critical"): "needs a day without a backup",
    ("DrillOld", "critical"): "needs a day and a half without a drill",
    ("OffsiteOld", "critical"): "needs six hours without a copy",
    **dict.fromkeys(
        [
            ("GrafanaDown", "warning"),
            ("LokiDown", "warning"),
            ("LokiCompactionFailing", "warning"),
            ("AlloyNotSending", "warning"),
            ("AlloyDroppingLogs", "warning"),
        ],
        NO_ARCHIVE,
    ),
}
"""Alerts that are judged by promtool alone, and why."""


def fault(
    what: str, *expected: Expected, after: tuple[str, ...] = (), first: bool = False
) -> Callable[[Make], Make]:
    def register(make: Make) -> Make:
        name = make.__name__
        FAULTS[name] = Fault(name, what, contextlib.contextmanager(make), expected, after, first)
        return make

    return register


# ---- PostgreSQL ------------------------------------------------------------------------------


@fault(
    "a block of a table is overwritten on the disk, and the table read",
    # PostgreSQL is restarted for it, and again for the fault after it; each may cost a scrape.
    Expected("PostgresChecksumFailures", "critical", {"datname": "app"}, 45),
    first=True,
)
def damaged_page(world: World) -> Iterator[None]:
    world.psql("CREATE TABLE damaged AS SELECT generate_series(1, 10000) AS n", "CHECKPOINT")
    path = world.psql("SELECT pg_relation_filepath('damaged')").strip()
    with world.without_postgres():
        file = f"/dev/shm/{PROJECT}/postgres/pgdata/{path}"
        ENGINE.run(
            *("dd", "if=/dev/urandom", f"of={file}", "bs=64", "count=1", "seek=200"),
            "conv=notrunc",
        )
    world.psql("SELECT sum(n) FROM damaged", check=False)
    yield
    world.psql("DROP TABLE damaged", "SELECT pg_stat_reset()")


AGES = (
    "SELECT max(age(datfrozenxid)), max(age(datfrozenxid)) FILTER (WHERE datname = 'app'), "
    "pg_current_xact_id() FROM pg_database"
)


def ages(world: World) -> tuple[int, int, int]:
    """The greatest age of a database's oldest transaction, that of `app`, and the counter."""
    greatest, own, counter = (int(word) for word in world.psql(AGES).split("|"))
    return greatest, own, counter


def jump(world: World, age: int) -> contextlib.AbstractContextManager[None]:
    """Set the transaction counter ahead until the oldest transaction in `app` is of this age.

    A lock keeps autovacuum from freezing what is old. The counter is set to the beginning of a
    segment of the commit log, which is then made anew.
    """
    _, own, counter = ages(world)
    transactions = (counter + age - own) % 2**32
    with world.without_postgres() as image:
        ENGINE.run(
            *("docker", "run", "--rm", "--network=none", "--user=70:70"),
            "--entrypoint=pg_resetwal",
            f"--volume=/dev/shm/{PROJECT}/postgres:/var/lib/postgresql/data",
            image,
            f"--next-transaction-id={transactions // 2**20 * 2**20}",
            "/var/lib/postgresql/data/pgdata",
        )
    return world.session(
        "SET idle_in_transaction_session_timeout = 0",
        "BEGIN",
        "LOCK TABLE old IN SHARE UPDATE EXCLUSIVE MODE",
    )


@fault(
    "the oldest transaction is 1.1 thousand million old, and a lock keeps vacuum away",
    # PostgreSQL is restarted for it.
    Expected("PostgresWraparound", "warning", {"datname": "app"}, 20),
    first=True,
)
def old_transactions(world: World) -> Iterator[None]:
    world.psql("CREATE TABLE old AS SELECT 1 AS n")
    with jump(world, 1_100_000_000):
        yield
    # A database that is still old would stop PostgreSQL at the next jump.
    world.psql("VACUUM (FREEZE)")
    wait_for("autovacuum freezes every database", lambda: ages(world)[0] < 300_000_000, 600, 5)


@fault(
    "the oldest transaction is 1.95 thousand million old, and a lock keeps vacuum away",
    # PostgreSQL is restarted for it.
    Expected("PostgresWraparound", "critical", {"datname": "app"}, 20),
    after=("old_transactions", "idle_transaction", "refused_query", "many_connections",
           "smouldering_budgets", "burnt_budgets", "deadlocks", "full_nginx_tmp"),
)  # fmt: skip
def very_old_transactions(world: World) -> Iterator[None]:
    greatest, own, _ = ages(world)
    assert greatest - own < 150_000_000, "another database would be too old"
    with jump(world, 1_950_000_000):
        yield


@fault(
    "clients take 43 of 57 connections beside the application's",
    # They need some seconds to connect, and stay below what would shut the exporter out.
    Expected("PostgresConnectionsHigh", "warning", shows=5),
)
def many_connections(world: World) -> Iterator[None]:
    with pgbench(world, 700, 43, "SELECT pg_sleep(5);"):
        yield


@fault(
    "a client that has turned its time limit off leaves a transaction open",
    Expected("PostgresLongTransaction", "warning", {"state": "idle in transaction"}, 600),
)
def idle_transaction(world: World) -> Iterator[None]:
    with world.session("SET idle_in_transaction_session_timeout = 0", "BEGIN", "SELECT 1"):
        yield


@fault(
    "clients lock two rows in opposite order",
    Expected("PostgresDeadlocks", "warning", {"datname": "app"}, 30),
)
def deadlocks(world: World) -> Iterator[None]:
    world.psql("CREATE TABLE pair AS SELECT n, 0 AS v FROM generate_series(1, 2) AS n")
    update = "UPDATE pair SET v = v + 1 WHERE n = {};"
    scripts = [
        f"BEGIN; {update.format(a)} SELECT pg_sleep(0.2); {update.format(b)} COMMIT;"
        for a, b in ((1, 2), (2, 1))
    ]
    with pgbench(world, 60, 4, *scripts):
        yield
    world.psql("DROP TABLE pair")


@contextlib.contextmanager
def pgbench(world: World, seconds: int, clients: int, *scripts: str) -> Iterator[None]:
    """Clients that run these scripts over and over."""
    names = [f"/tmp/prove-{id(scripts)}-{number}" for number, _ in enumerate(scripts)]
    container = world.stack.one("postgres")["Id"]
    for name, script in zip(names, scripts, strict=True):
        subprocess.run(
            ["docker", "exec", "-i", container, "sh", "-c", f"cat > {name}"],
            input=script, text=True, check=True,
        )  # fmt: skip
    with subprocess.Popen(
        [
            *("docker", "exec", container, "pgbench", "-h", "/run/postgresql", "-U", "postgres"),
            *("-n", "-c", str(clients), "-T", str(seconds), "--max-tries=0"),
            *(word for name in names for word in ("-f", name)),
            "app",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            yield
        finally:
            world.psql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE application_name = 'pgbench'"
                + (" AND query NOT LIKE '%pair%'" if clients > 10 else " AND query LIKE '%pair%'")
            )
            process.kill()


@fault(
    "the exporter may no longer read the directory of the log",
    Expected("PostgresMetricsFailing", "warning"),
)
def refused_query(world: World) -> Iterator[None]:
    world.psql("REVOKE EXECUTE ON FUNCTION pg_ls_waldir() FROM pg_monitor")
    yield
    world.psql("GRANT EXECUTE ON FUNCTION pg_ls_waldir() TO pg_monitor")


# ---- Redis -----------------------------------------------------------------------------------


@fault(
    "the directory of redis-queue cannot be written when a snapshot is due",
    # Due are 100 changes 300 s after the last snapshot or start.
    Expected("RedisPersistenceFailing", "critical", {"instance": "redis-queue"}, 305),
    # A queue in this state refuses even PING, so that /health answers 503.
    Expected("ProbeFailed", "critical", shows=305),
    # A failing probe silences what the API's users see.
    after=("smouldering_budgets", "burnt_budgets", "full_nginx_tmp"),
)
def refused_snapshot(world: World) -> Iterator[None]:
    directory = DATA / "redis" / "queue"
    directory.chmod(0o500)
    client = world.redis("queue")
    for number in range(150):
        client.set(f"prove:{number}", "x")
    yield
    directory.chmod(0o700)


@fault(
    "the disk of redis-cache is full: it answers neither writes nor PING",
    Expected("RedisPersistenceFailing", "warning", {"instance": "redis-cache"}, 10),
    # Three checks in a row, each 15 s after the last and up to 5 s long.
    Expected("ContainerUnhealthy", "warning", {"compose_service": "redis-cache"}, 70),
    # A failing probe silences what the API's users see.
    after=("smouldering_budgets", "burnt_budgets", "full_nginx_tmp", "refused_snapshot"),
)
def full_cache_disk(world: World) -> Iterator[None]:
    with filled(DATA / "redis" / "cache"):
        client = world.redis("cache")
        with contextlib.suppress(Exception):
            for number in range(100):
                client.set(f"prove:{number}", "x" * 1000)
        yield


@fault(
    "redis-queue holds 90 % of what it may",
    Expected("RedisMemoryHigh", "critical", {"instance": "redis-queue"}),
    # A queue whose snapshots fail takes nothing in.
    after=("refused_snapshot",),
)
def full_queue(world: World) -> Iterator[None]:
    client = world.redis("queue")
    wait_for("redis-queue takes writes again", lambda: _writes(client), 60, 1)
    known: Any = client.info("memory")
    size = int(known["maxmemory"] * 0.9) - int(known["used_memory"])
    for half in ("a", "b"):
        client.setrange(f"prove:{half}", size // 2, "x")
    yield
    for half in ("a", "b"):
        client.delete(f"prove:{half}")


@fault(
    "the processor of usage events is stopped",
    Expected("UsageProcessorDown", "warning"),
    after=("closed_usage", "foreign_usage"),
)
def stopped_processor(world: World) -> Iterator[None]:
    processor = world.stack.one("processor")["Id"]
    ENGINE.run("docker", "stop", processor)
    yield
    ENGINE.run("docker", "start", processor)


def _report_usage(world: World) -> None:
    event = {
        "event_id": f"prove-{time.time_ns()}",
        "tenant": "prove",
        "metric": "requests",
        "quantity": 1,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    answer = world.stack.site.patiently("POST", "/api/usage/events", json=event)
    assert answer.status_code == 202, answer.text


@fault(
    "usage events may no longer be counted, and more come",
    Expected("UsageBacklogOld", "warning", shows=300),
    after=("full_queue",),
)
def closed_usage(world: World) -> Iterator[None]:
    world.psql("REVOKE INSERT ON usage_event_ids FROM app")
    _report_usage(world)
    yield
    world.psql("GRANT INSERT ON usage_event_ids TO app")


@fault(
    "something in the queue of usage events that nobody can read",
    Expected("UsageEventsRejected", "warning"),
    # A batch that cannot be counted holds up what is read after it.
    after=("full_queue", "closed_usage"),
)
def foreign_usage(world: World) -> Iterator[None]:
    world.redis("queue").xadd("usage-events", {"foreign": "1"})
    yield
    world.psql("DELETE FROM usage_rejected")


@fault(
    "the aggregator of usage is stopped",
    Expected("UsageAggregatorDown", "warning"),
    after=("closed_rollups",),
)
def stopped_aggregator(world: World) -> Iterator[None]:
    aggregator = world.stack.one("aggregator")["Id"]
    ENGINE.run("docker", "stop", aggregator)
    yield
    ENGINE.run("docker", "start", aggregator)


@fault(
    "usage may no longer be rolled up, and more is counted",
    Expected("UsageRollupOld", "warning", shows=300),
    after=("closed_usage", "full_queue"),
)
def closed_rollups(world: World) -> Iterator[None]:
    world.psql("REVOKE UPDATE ON usage_days FROM app")
    _report_usage(world)
    yield
    world.psql("GRANT UPDATE ON usage_days TO app")


@fault("the query service is stopped", Expected("UsageQueryDown", "warning"))
def stopped_query(world: World) -> Iterator[None]:
    slot = world.stack.api_slot().removeprefix("api-")
    query = world.stack.one(f"query-{slot}")["Id"]
    ENGINE.run("docker", "stop", query)
    yield
    ENGINE.run("docker", "start", query)


@fault("the backup service is stopped", Expected("BackupDown", "warning"), after=("lost_stream",))
def stopped_backup(world: World) -> Iterator[None]:
    service = world.stack.one("backup")["Id"]
    ENGINE.run("docker", "stop", service)
    yield
    ENGINE.run("docker", "start", service)


@fault("PostgreSQL sends no WAL", Expected("BackupFailing", "warning"))
def lost_stream(world: World) -> Iterator[None]:
    login, _ = world.stack.login("postgres_backup_password", "backup")
    world.psql(f"ALTER ROLE {login} NOREPLICATION")
    senders = "SELECT pg_terminate_backend(pid) FROM pg_stat_replication WHERE usename = "
    world.psql(f"{senders}'{login}'")
    yield
    world.psql(f"ALTER ROLE {login} REPLICATION")


@fault("the drill cannot write its marker", Expected("DrillFailing", "warning"))
def unmarked_drill(world: World) -> Iterator[None]:
    rights = "INSERT ON drill.markers {} backup"
    postgres = ("postgres", *PSQL, "-d", "postgres", "-c")
    world.stack.execute(*postgres, f"REVOKE {rights.format('FROM')}")
    keeper = ("python3", "/etc/compose-stack/current/bin/keeper.py", "drill")
    assert "permission denied" in world.stack.execute("backup", *keeper, check=False)
    yield
    world.stack.execute(*postgres, f"GRANT {rights.format('TO')}")
    world.stack.execute("backup", *keeper)


@fault(
    "the off-site copy is stopped", Expected("OffsiteDown", "warning"), after=("lost_repository",)
)
def stopped_offsite(world: World) -> Iterator[None]:
    service = world.stack.one("offsite")["Id"]
    ENGINE.run("docker", "stop", service)
    yield
    ENGINE.run("docker", "start", service)


@fault("the off-site repository is gone", Expected("OffsiteFailing", "warning"))
def lost_repository(world: World) -> Iterator[None]:
    keeper = ("python3", "/etc/compose-stack/current/bin/keeper.py", "copy")
    world.stack.execute("offsite", *keeper)
    config = DATA / "offsite" / "config"
    aside = config.rename(config.with_name("config.aside"))
    assert "repository is gone" in world.stack.execute("offsite", *keeper, check=False)
    yield
    aside.rename(config)
    world.stack.execute("offsite", *keeper)


def _rabbitmqctl(world: World, *words: str) -> None:
    world.stack.execute("rabbitmq", "rabbitmqctl", "--quiet", *words)


@fault("RabbitMQ is stopped", Expected("RabbitMQDown", "warning"), after=("little_rabbitmq_disk",))
def stopped_rabbitmq(world: World) -> Iterator[None]:
    broker = world.stack.one("rabbitmq")["Id"]
    ENGINE.run("docker", "stop", broker)
    yield
    ENGINE.run("docker", "start", broker)


@fault(
    "RabbitMQ may use less memory than it does",
    Expected("RabbitMQMemoryAlarm", "warning"),
    after=("stopped_mailbox",),
)
def little_rabbitmq_memory(world: World) -> Iterator[None]:
    _rabbitmqctl(world, "set_vm_memory_high_watermark", "absolute", "20MiB")
    yield
    _rabbitmqctl(world, "set_vm_memory_high_watermark", "absolute", "307MiB")


@fault(
    "RabbitMQ's disk has less room than it wants free",
    Expected("RabbitMQDiskAlarm", "warning"),
    after=("little_rabbitmq_memory",),
)
def little_rabbitmq_disk(world: World) -> Iterator[None]:
    _rabbitmqctl(world, "set_disk_free_limit", "100TiB")
    yield
    _rabbitmqctl(world, "set_disk_free_limit", "512MiB")


def _celebrate(world: World, count: int) -> None:
    """Have so many birthday messages due, since twenty minutes."""
    world.psql(
        "INSERT INTO users (first_name, last_name, birthday, time_zone, email)"
        f" SELECT 'Prove', n::text, '1990-01-01', 'UTC', 'prove-' || n || '@example.org'"
        f" FROM generate_series(1, {count}) AS n ON CONFLICT DO NOTHING",
        "INSERT INTO birthday_messages (user_id, year, due_at, next_at)"
        " SELECT id, 2020, now() - interval '20 minutes', now() FROM users"
        " WHERE first_name = 'Prove' ON CONFLICT DO NOTHING",
    )


def _forget_celebration(world: World) -> None:
    world.psql("DELETE FROM users WHERE first_name = 'Prove'")


@fault(
    "the email service refuses a birthday message",
    Expected("BirthdayMessagesDead", "warning"),
)
def refused_message(world: World) -> Iterator[None]:
    mailbox = world.stack.one("mailbox")["NetworkSettings"]["Networks"]
    behaviour = f"http://{mailbox[f'{PROJECT}_backend']['IPAddress']}:8025/behaviour"
    told = requests.put(behaviour, json={"failure": 1, "status": 422}, timeout=5)
    assert told.status_code == 200, told.text
    _celebrate(world, 1)
    yield
    requests.put(behaviour, json={}, timeout=5)
    _forget_celebration(world)


@fault(
    "the email service is stopped while birthday messages are due",
    Expected("EmailServiceFailing", "warning"),
    after=("refused_message",),
)
def stopped_mailbox(world: World) -> Iterator[None]:
    mailbox = world.stack.one("mailbox")["Id"]
    ENGINE.run("docker", "stop", mailbox)
    _celebrate(world, 50)
    yield
    ENGINE.run("docker", "start", mailbox)
    _forget_celebration(world)


@fault(
    "birthday messages may no longer be queued, and one is due",
    Expected("BirthdayMessagesLate", "warning"),
    after=("stopped_mailbox",),
)
def closed_messages(world: World) -> Iterator[None]:
    world.psql("REVOKE UPDATE ON birthday_messages FROM app")
    _celebrate(world, 1)
    yield
    world.psql("GRANT UPDATE ON birthday_messages TO app")
    _forget_celebration(world)


@fault(
    "the scheduler of birthday messages is stopped",
    Expected("BirthdaySchedulerDown", "warning"),
    after=("closed_messages",),
)
def stopped_scheduler(world: World) -> Iterator[None]:
    scheduler = world.stack.one("scheduler")["Id"]
    ENGINE.run("docker", "stop", scheduler)
    yield
    ENGINE.run("docker", "start", scheduler)


@fault(
    "the worker that sends birthday messages is stopped",
    Expected("BirthdayWorkerDown", "warning"),
    after=("closed_messages",),
)
def stopped_worker(world: World) -> Iterator[None]:
    worker = world.stack.one("worker")["Id"]
    ENGINE.run("docker", "stop", worker)
    yield
    ENGINE.run("docker", "start", worker)


def _writes(client: Any) -> bool:
    with contextlib.suppress(Exception):
        return bool(client.set("prove:written", "x"))
    return False


@fault(
    "the disk of redis-queue is full while it is written to: it ends, is started, and ends",
    Expected("ContainerRestarting", "warning", {"compose_service": "redis-queue"}, 15),
    after=("full_queue", "full_cache_disk", "burnt_budgets"),
)
def full_queue_disk(world: World) -> Iterator[None]:
    stop = threading.Event()

    def write() -> None:
        while not stop.wait(0.5):
            with contextlib.suppress(Exception):
                world.redis("queue").set("prove:full", "x" * 5000)

    with filled(DATA / "redis" / "queue"):
        thread = threading.Thread(target=write, daemon=True)
        thread.start()
        yield
        stop.set()
        thread.join()
    # The engine waits up to a minute before it starts again what ended often.
    wait_for("redis-queue is back", lambda: _writes(world.redis("queue")), 120, 1)
    time.sleep(45)


@contextlib.contextmanager
def filled(path: Any) -> Iterator[None]:
    """A file system without a byte left."""
    ballast = path / "ballast"
    ENGINE.run("dd", "if=/dev/zero", f"of={ballast}", "bs=64k", check=False)
    ENGINE.run("dd", "if=/dev/zero", f"of={ballast}2", "bs=512", check=False)
    try:
        yield
    finally:
        ENGINE.run("rm", "-f", str(ballast), f"{ballast}2")


# ---- Services that stop ----------------------------------------------------------------------


LAST = ("very_old_transactions", "full_queue_disk", "full_cache_disk", "burnt_budgets",
        "served_two_days", "full_nginx_tmp", "flood", "full_queue",
        "crowded_container")  # fmt: skip


@fault("PostgreSQL is stopped", Expected("PostgresDown", "critical"), after=LAST)
def stopped_postgres(world: World) -> Iterator[None]:
    yield from stopped(world, "postgres")


@fault(
    "redis-queue is stopped",
    Expected("RedisDown", "critical", {"instance": "redis-queue"}),
    after=LAST,
)
def stopped_redis(world: World) -> Iterator[None]:
    yield from stopped(world, "redis-queue")


@fault("nginx is stopped", Expected("NginxDown", "critical"), after=(*LAST, "killed_exporter"))
def stopped_nginx(world: World) -> Iterator[None]:
    yield from stopped(world, "nginx")


@fault("the serving API container is stopped", Expected("ApiDown", "critical"), after=LAST)
def stopped_api(world: World) -> Iterator[None]:
    yield from stopped(world, world.stack.api_slot())


def stopped(world: World, service: str) -> Iterator[None]:
    world.stack.compose("stop", service)
    yield
    world.stack.compose("start", service)


@fault(
    "nginx-exporter is killed",
    Expected("TargetDown", "warning", {"job": "nginx"}),
    Expected("ContainerNotRunning", "warning", {"compose_service": "nginx-exporter"}),
)
def killed_exporter(world: World) -> Iterator[None]:
    # A kill by hand: the engine does not start it again.
    world.stack.compose("kill", "nginx-exporter")
    yield
    world.stack.compose("start", "nginx-exporter")


# ---- What users see --------------------------------------------------------------------------


@contextlib.contextmanager
def broken_tables(world: World, hold: float) -> Iterator[None]:
    """Nothing may be added to `items`, and a lock on it comes and goes."""
    world.psql("REVOKE INSERT ON items FROM app")
    cycle = (
        "DO $$ BEGIN LOOP LOCK TABLE items IN ACCESS EXCLUSIVE MODE; "
        f"PERFORM pg_sleep({hold}); COMMIT; END LOOP; END $$"
    )
    with subprocess.Popen(
        ["docker", "exec", "-i", world.stack.one("postgres")["Id"], "psql", "-h",
         "/run/postgresql", "-U", "postgres", "-d", "app", "-c", cycle],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        try:
            yield
        finally:
            world.psql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'DO $$%'",
                "GRANT INSERT ON items TO app",
            )
            process.kill()


GOOD = ("GET", "/api/cache/nothing", None)
BAD = (
    "POST",
    "/api/items",
    json.dumps({"name": "x", "description": "", "price_cents": 1, "quantity": 1}),
)
SLOW = ("GET", "/api/items/999999", None)


@fault(
    "one request in 240 fails (a grant is missing), one in 25 waits (for a locked table)",
    # More than 10 bad ones must have come, each of which counts fully after 5 minutes.
    Expected("ApiAvailabilityBurn", "warning", shows=480),
    Expected("ApiLatencyBurn", "warning", shows=240),
)
def smouldering_budgets(world: World) -> Iterator[None]:
    mix = [BAD, *[SLOW if number % 25 == 0 else GOOD for number in range(239)]]
    with broken_tables(world, 0.8), world.requests(10, *mix):
        yield


@fault(
    "every fifth request fails (a grant is missing), and all wait (for a locked table)",
    # They are few beside the good ones of the ten minutes before: 0.6 % must fail,
    Expected("ApiAvailabilityBurn", "critical", shows=240),
    # and 6 % be slow.
    Expected("ApiLatencyBurn", "critical", shows=300),
    after=("smouldering_budgets", "full_nginx_tmp"),
)
def burnt_budgets(world: World) -> Iterator[None]:
    # Two clients leave the API's other workers to the probe, whose failure would silence this.
    with broken_tables(world, 0.5), world.requests(20, BAD, *[SLOW] * 4, clients=2):
        yield


@fault(
    "nginx's temporary directory is full: uploads end with a 500 that the API never sees",
    Expected("NginxServerErrors", "critical", shows=30),
)
def full_nginx_tmp(world: World) -> Iterator[None]:
    world.stack.execute("nginx", "sh", "-c", "cat /dev/zero > /tmp/ballast", check=False)
    with world.requests(5, ("POST", "/api/items", "x" * 200_000)):
        yield
    world.stack.execute("nginx", "rm", "/tmp/ballast")


FLOODING = """
import http.client, ssl, time
context = ssl._create_unverified_context()
while True:
    try:
        client = http.client.HTTPSConnection("nginx", 8443, context=context, timeout=10)
        while True:
            client.request("GET", "/health/live", headers={"Host": "localhost"})
            client.getresponse().read()
            time.sleep(0.025)
    except Exception:
        time.sleep(0.5)
"""


@fault(
    # For what is no request of users: it would thin out those that burn the budgets.
    "a client asks up to 40 times a second, where 20 are allowed",
    Expected("NginxRateLimited", "warning", shows=30),
    first=True,
)
def flood(world: World) -> Iterator[None]:
    image = world.stack.one(world.stack.api_slot().removesuffix("-1"))["Image"]
    ENGINE.run(
        *("docker", "run", "--rm", "--detach", f"--name={FLOOD}", f"--network={PROJECT}_frontend"),
        *("--entrypoint=python3", image, "-c", FLOODING),
    )
    try:
        yield
    finally:
        ENGINE.run("docker", "rm", "--force", FLOOD, check=False)


@fault(
    "nginx serves a certificate with 15 days left",
    Expected("CertificateExpiresSoon", "warning"),
)
def served_fifteen_days(world: World) -> Iterator[None]:
    world.serve_certificate(15)
    yield


@fault(
    "nginx serves a certificate with 2 days left",
    Expected("CertificateExpiresSoon", "critical"),
    after=("served_fifteen_days",),
)
def served_two_days(world: World) -> Iterator[None]:
    world.serve_certificate(2)
    yield
    world.serve_certificate(90)


# ---- The host and its containers -------------------------------------------------------------


@fault(
    "a disk has 7 % left",
    Expected("FilesystemFull", "warning", {"mountpoint": str(DATA / "blocks")}),
)
def nearly_full_disk(world: World) -> Iterator[None]:
    leave(0.07)
    yield


@fault(
    "a disk has 3 % left",
    Expected("FilesystemFull", "critical", {"mountpoint": str(DATA / "blocks")}),
    # It silences failing persistence: that follows from a full disk.
    after=("nearly_full_disk", "refused_snapshot", "full_cache_disk"),
)
def full_disk(world: World) -> Iterator[None]:
    leave(0.03)
    yield
    leave(1)


def leave(share: float) -> None:
    path = DATA / "blocks"
    ballast = path / "ballast"
    ballast.unlink(missing_ok=True)
    free = os.statvfs(path)
    size = (free.f_bavail - int(share * free.f_blocks)) * free.f_frsize
    if size > 0:
        ENGINE.run("dd", "if=/dev/zero", f"of={ballast}", "bs=4096", f"count={size // 4096}")


@fault(
    "a disk has no inodes left",
    Expected("FilesystemInodesLow", "warning", {"mountpoint": str(DATA / "inodes")}),
)
def no_inodes(world: World) -> Iterator[None]:
    with contextlib.suppress(OSError):
        for number in range(10_000):
            (DATA / "inodes" / str(number)).touch()
    yield
    for path in (DATA / "inodes").glob("[0-9]*"):
        path.unlink()


HOLDING = """
import sys
held = b"x" * int(sys.argv[1])
print("held", flush=True)
sys.stdin.read()
"""


@fault(
    "a program in the API's container holds memory, 94 % of what it may have",
    # The collector comes round every 15 s, which the limit allows for.
    Expected("ContainerMemoryHigh", "warning", {"compose_service": "api-blue"}, 5),
)
def crowded_container(world: World) -> Iterator[None]:
    service = world.stack.api_slot()
    query = f'container_memory_working_set_bytes{{service="{service}"}}'
    used = float(world.prometheus.query(query)[0]["value"][1])
    container = world.stack.one(service)
    size = int(0.94 * float(container["HostConfig"]["Memory"]) - used)
    with subprocess.Popen(
        ["docker", "exec", "-i", container["Id"], "python3", "-c", HOLDING, str(size)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield
        finally:
            process.stdin.close()


GREEDY = "blackbox-exporter"


@fault(
    "a program in blackbox-exporter's container asks for more memory than it may have",
    Expected("ContainerOomKilled", "warning", {"compose_service": GREEDY}),
    after=("killed_outsider",),
)
def greedy_container(world: World) -> Iterator[None]:
    world.stack.execute(GREEDY, "sh", "-c", "head -c 80m /dev/zero | tail > /dev/null", check=False)
    yield


@fault(
    "a program outside the stack asks for more memory than it may have",
    Expected("HostOomKill", "warning"),
)
def killed_outsider(world: World) -> Iterator[None]:
    ENGINE.run(
        *("docker", "run", "--rm", f"--name={PROJECT}-outsider", "--network=none"),
        *("--memory=16m", "--memory-swap=16m", "--entrypoint=sh"),
        world.stack.one("node-exporter")["Image"],
        *("-c", "head -c 40m /dev/zero | tail > /dev/null"),
        check=False,
    )
    yield


@fault(
    "the collector of the containers' figures stands still",
    # As old as the rule allows.
    Expected("ContainerMetricsStale", "warning", shows=120),
    # It silences what it makes unreliable.
    after=("greedy_container", "crowded_container", "killed_exporter", "full_cache_disk",
           "full_queue_disk"),
)  # fmt: skip
def stopped_collector(world: World) -> Iterator[None]:
    listed = ENGINE.run("pgrep", "-f", f"{DIRECTORY}/services/host/.*--project={PROJECT}")
    (pid,) = (int(word) for word in listed.split())
    os.kill(pid, signal.SIGSTOP)
    yield
    os.kill(pid, signal.SIGCONT)


# ---- Monitoring itself -----------------------------------------------------------------------


# It is sent anew every minute.
@fault("none: monitoring works", Expected("Watchdog", "none", shows=60), first=True)
def nothing(world: World) -> Iterator[None]:
    yield


@fault(
    "Slack answers 500",
    # Tried until the group's next turn, and then given up and counted.
    Expected("AlertmanagerNotificationsFailing", "critical", {"integration": "slack"}, 240),
)
def refusing_receiver(world: World) -> Iterator[None]:
    posts = world.receiver.posts
    wait_for("a message to Slack", lambda: any(post.path == "/slack" for post in posts), 240)
    world.receiver.refused.add("/slack")
    yield
    world.receiver.refused.discard("/slack")


@contextlib.contextmanager
def by_hand(world: World, service: str, name: str, change: Callable[[str], str]) -> Iterator[None]:
    """A change of a file on the host, which the service is told to read."""
    path = DIRECTORY / "services" / service / "current" / "config" / name
    before = path.read_text() if path.exists() else None
    path.write_text(change(before or ""))
    world.stack.compose("kill", "--signal=HUP", service)
    try:
        yield
    finally:
        if before is None:
            path.unlink()
        else:
            path.write_text(before)
        world.stack.compose("kill", "--signal=HUP", service)


@fault(
    "a mistake in alertmanager.yml, made by hand",
    Expected("AlertmanagerConfigReloadFailed", "warning"),
)
def broken_alertmanager_file(world: World) -> Iterator[None]:
    with by_hand(world, "alertmanager", "alertmanager.yml", lambda text: f"{text}\nroutes: 5\n"):
        yield


@fault(
    "a rule of one's own multiplies what does not match",
    Expected("PrometheusRuleFailing", "warning", shows=15),
)
def failing_rule(world: World) -> Iterator[None]:
    rule = {"record": "own:product", "expr": "node_cpu_seconds_total * on (job) node_disk_info"}
    rules = {"groups": [{"name": "own", "rules": [rule]}]}
    with by_hand(world, "prometheus", "rooms/host/rules_own.yml", lambda _: json.dumps(rules)):
        yield


@fault(
    "a mistake in prometheus.yml, made by hand",
    Expected("PrometheusConfigReloadFailed", "warning"),
    after=("failing_rule",),
)
def broken_prometheus_file(world: World) -> Iterator[None]:
    with by_hand(world, "prometheus", "prometheus.yml", lambda text: f"{text}\nrules: 5\n"):
        yield


@fault(
    "the log of the measurements is overwritten on the disk, and Prometheus restarted",
    # It ends, starts, reads what it has, and finds Alertmanager.
    Expected("PrometheusStorageFailing", "warning", shows=30),
    after=("stopped_postgres", "stopped_redis", "stopped_nginx", "stopped_api",
           "stopped_collector", "broken_prometheus_file", "no_inodes", "full_disk",
           "broken_alertmanager_file", "refusing_receiver", "greedy_container"),
)  # fmt: skip
def damaged_measurements(world: World) -> Iterator[None]:
    world.stack.compose("stop", "prometheus")
    # The longest file of the log; what comes before the damage is kept.
    log = max((DATA / "prometheus" / "wal").glob("[0-9]*"), key=lambda file: file.stat().st_size)
    place = log.stat().st_size * 9 // 10
    ENGINE.run(
        *("dd", "if=/dev/urandom", f"of={log}", "bs=64", "count=1", f"seek={place // 64}"),
        "conv=notrunc",
    )
    world.stack.compose("start", "prometheus")
    yield
