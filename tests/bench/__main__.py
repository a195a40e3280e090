"""Measure the stack: `make bench`.

Deploys a project of its own from `inventories/test`, measures it by real runs of the playbooks,
prints a table and keeps it in docs/proofs/bench.md, and removes the project again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.bench import backups, claims, endpoints, footprint, load, messages, usage
from tests.figures import Figure, report, table, write
from tests.harness import MAX_EXECUTIONS, ROOT, Engine, Run, Site, Stack, playbook

if TYPE_CHECKING:
    from collections.abc import Callable

INVENTORY = "inventories/test"
PAGE = ROOT / "docs" / "proofs" / "bench.md"
IDLE_SECONDS = 20
MONITORING_SECONDS = 120
ROUNDS = 3
CORE = {"api-blue", "api-green", "nginx", "postgres", "redis-cache", "redis-queue"}
UNLIMITED: dict[str, Any] = {"nginx_rate_limit": 100000, "nginx_rate_burst": 100000}
# In memory nothing is durable, and what is written counts as PostgreSQL's memory.
ON_THE_DISK: dict[str, Any] = dict.fromkeys(
    ("postgres_data_dir", "redis_data_dir", "rabbitmq_data_dir", "backup_data_dir"), ""
)


@dataclass(frozen=True)
class Bench:
    """The stack that is measured."""

    project: str
    directory: str
    http_port: int
    https_port: int

    @property
    def data(self) -> Path:
        return Path("/dev/shm", self.project)

    @property
    def backups(self) -> Path:
        """On the disk: what a container writes into memory counts as its own."""
        return Path("/var/tmp", self.project, "backup")

    @property
    def variables(self) -> dict[str, Any]:
        return {
            "stack_project": self.project,
            "stack_dir": self.directory,
            "nginx_http_port": self.http_port,
            "nginx_https_port": self.https_port,
            "postgres_data_dir": str(self.data / "postgres"),
            "redis_data_dir": str(self.data / "redis"),
            "rabbitmq_data_dir": str(self.data / "rabbitmq"),
            "rabbitmq_management_port": self.https_port + 1,
            "backup_data_dir": str(self.backups),
        }

    @property
    def stack(self) -> Stack:
        ca = Path(self.directory, "tls", "live", "ca.pem")
        site = Site("127.0.0.1", self.https_port, self.http_port, "localhost", ca)
        return Stack(Engine(), self.project, self.directory, site)

    def run(self, name: str = "site.yml", seconds: float = 300, **variables: Any) -> Run:
        merged = {**self.variables, **variables}
        # Databases in memory and on the disk take turns, and each is meant.
        Path(self.directory, "state/postgres/system-identifier").unlink(missing_ok=True)
        return playbook(INVENTORY, name=name, variables=merged, seconds=seconds).succeeded()

    def clean(self) -> None:
        self.run("clean.yml", clean_confirm=self.project)
        for path in (self.data, self.backups.parent):
            with contextlib.suppress(OSError):
                path.rmdir()

    def down(self) -> None:
        self.stack.compose("down", "--remove-orphans")

    def services(self) -> dict[str, tuple[set[str], set[str]]]:
        """Identities of each service's running containers, and when they were started."""
        return {
            service: (
                {item["Id"] for item in items},
                {item["State"]["StartedAt"] for item in items},
            )
            for service, items in self.stack.services().items()
        }

    def latest_release(self) -> dict[str, Any]:
        kept = Path(self.directory, "state", "releases")
        number = max(int(path.name) for path in kept.iterdir())
        record: dict[str, Any] = json.loads((kept / str(number) / "release.json").read_text())
        return record

    def processes(self, service: str) -> set[str]:
        listed = Engine().run("docker", "top", self.stack.one(service)["Id"], "-o", "pid")
        return set(listed.split()[1:])


def start(bench: Bench) -> list[Figure]:
    """From images and nothing running: the playbook, and Compose alone."""
    site: list[float] = []
    plain: list[float] = []

    def with_playbook() -> None:
        site.append(bench.run().seconds)

    def with_compose() -> None:
        began = time.monotonic()
        bench.stack.compose("up", "--detach", "--wait")
        plain.append(time.monotonic() - began)

    for number in range(ROUNDS):
        pair = (with_compose, with_playbook)
        # The playbook comes last, so that what follows measures what it has left.
        for step in pair if (ROUNDS - number) % 2 else reversed(pair):
            bench.down()
            step()
    ours, theirs = statistics.median(site), statistics.median(plain)
    limit = 1.5 * theirs + 10
    return [
        Figure(
            "images there, nothing running: `site.yml` / plain `docker compose up --detach --wait`",
            f"{ours:.1f} s / {theirs:.1f} s",
            f"1.5 times plus 10 s: {limit:.1f} s",
            ours <= limit,
        )
    ]


def idle_memory(bench: Bench) -> list[Figure]:
    time.sleep(IDLE_SECONDS)
    held, counted = footprint.memory(bench.stack)
    core = {name: size for name, size in held.items() if name.rpartition("-")[0] in CORE}
    rest = {name: size for name, size in held.items() if name not in core}
    total, parts = _added_up(core)
    more, parts_of_it = _added_up(rest)
    return [
        Figure(
            f"core stack idle memory, {IDLE_SECONDS} s after start ({counted})",
            f"{total:.0f} MB ({parts})",
            "250 MB",
            total <= 250,
        ),
        Figure(
            "idle memory of the workloads, RabbitMQ and backups beside it",
            f"{more:.0f} MB ({parts_of_it})",
        ),
    ]


def _added_up(held: dict[str, int]) -> tuple[float, str]:
    """Megabytes, and those of each."""
    parts = ", ".join(f"{name} {size / 1e6:.0f}" for name, size in sorted(held.items()))
    return sum(held.values()) / 1e6, parts


def nothing_to_do(bench: Bench) -> list[Figure]:
    runs = [bench.run() for _ in range(ROUNDS)]
    changed = max(run.changed for run in runs)
    executions = max(run.executions for run in runs)
    seconds = statistics.median(run.seconds for run in runs)
    return [
        Figure(
            "nothing to do: `site.yml`",
            f"changed={changed}, {executions} module executions, {seconds:.1f} s",
            f"changed=0, at most {MAX_EXECUTIONS} module executions, 12 s",
            changed == 0 and executions <= MAX_EXECUTIONS and seconds <= 12,
        )
    ]


def one_setting(bench: Bench) -> list[Figure]:
    """A setting that needs a new container, then one that nginx can reload."""
    memory_mb = 200
    first = bench.services()
    bench.run(redis_cache_memory_mb=memory_mb)
    second = bench.services()
    nginx = bench.processes("nginx")
    bench.run(redis_cache_memory_mb=memory_mb, nginx_rate_limit=11)
    third = bench.services()
    reloaded = bench.processes("nginx") != nginx
    verb = "nginx reloaded" if reloaded else "nginx not reloaded"

    touched = _differing(first, second)
    untouched = _differing(second, third)
    return [
        Figure(
            "one changed setting: `redis_cache_memory_mb`",
            f"recreated: {', '.join(touched) or 'none'}",
            "redis-cache alone",
            touched == ["redis-cache"],
        ),
        Figure(
            "one changed setting: `nginx_rate_limit`",
            f"recreated: {', '.join(untouched) or 'none'}; {verb}",
            "none, nginx reloaded",
            not untouched and reloaded,
        ),
    ]


def _differing(
    before: dict[str, tuple[set[str], set[str]]], after: dict[str, tuple[set[str], set[str]]]
) -> list[str]:
    return sorted(
        name for name in before.keys() | after.keys() if before.get(name) != after.get(name)
    )


def images(bench: Bench) -> list[Figure]:
    stack = bench.stack
    api = footprint.image_bytes(stack.one(stack.api_slot().removesuffix("-1"))["Image"]) / 1e6
    used = sorted(set(stack.compose("config", "--images").split()))
    together = footprint.together_bytes(used) / 1e6
    return [
        Figure("application image on disk", f"{api:.0f} MB", "160 MB", api <= 160),
        Figure(
            f"all {len(used)} core images together on disk, shared layers once",
            f"{together:.0f} MB",
            "450 MB",
            together <= 450,
        ),
    ]


def all_cores() -> dict[str, Any]:
    cores = min(2, os.cpu_count() or 1)
    return {"api_cpus": cores, "nginx_cpus": cores}


def requests_per_second(bench: Bench) -> list[Figure]:
    bench.run(**UNLIMITED, **all_cores())
    nginx = load.through_nginx(bench.stack, bare_on="network")
    socket = load.through_nginx(bench.stack, bare_on="socket")
    metrics = load.with_metrics(bench.stack)
    through, bare = load.median(nginx.ours), load.median(nginx.theirs)
    counted, without = metrics.cpu_us
    return [
        Figure(
            "GET item by id: nginx with TLS / the same gunicorn without nginx, on the same network",
            f"{nginx.ratio:.2f} ({nginx.spread})",
            "0.75 or more",
            nginx.ratio >= 0.75,
        ),
        Figure(
            "GET item by id: nginx with TLS / the same gunicorn on its unix socket",
            f"{socket.ratio:.2f} ({socket.spread})",
        ),
        Figure(
            "GET item by id: nginx with TLS",
            f"{through.per_second:.0f} requests/s, p99 {through.p99_ms:.1f} ms",
        ),
        Figure(
            "GET item by id: gunicorn without nginx",
            f"{bare.per_second:.0f} requests/s, p99 {bare.p99_ms:.1f} ms",
        ),
        Figure(
            "GET item by id: CPU time of gunicorn without metrics / as it is",
            f"{without / counted:.3f} ({without:.0f} us / {counted:.0f} us)",
            "0.97 or more",
            without / counted >= 0.97,
        ),
    ]


def on_the_disk(bench: Bench, **variables: Any) -> None:
    """Start there, with the first backup behind it."""
    bench.down()
    bench.run(**UNLIMITED, **ON_THE_DISK, **variables)
    backups.backed_up(bench.stack)


def claims_per_second(bench: Bench) -> list[Figure]:
    # A client that is throttled while it has the coupon's row would hold up all others.
    on_the_disk(bench, **all_cores())
    found = claims.measure(bench.stack)
    single, naive, many = (
        f"{statistics.median(rates):.0f} claims/s"
        for rates in (found.one_statement, found.select_for_update, found.in_batches)
    )
    return [
        Figure(
            "claims on one hot coupon: one statement / `SELECT ... FOR UPDATE` in a transaction",
            f"{found.ratio:.2f} ({single} / {naive})",
        ),
        Figure(f"claims on one hot coupon, {claims.BATCH} users a batch", many),
    ]


def patience(bench: Bench) -> list[Figure]:
    on_the_disk(bench, **all_cores())
    return [
        Figure(
            f"p99 of `{found.name}` at half of its limit",
            f"{found.p99_ms:.1f} ms at {found.limit / 2:.0f} requests/s",
        )
        for found in endpoints.measure(bench.stack)
    ]


def usage_per_second(bench: Bench) -> list[Figure]:
    on_the_disk(bench)
    found = usage.measure(bench.stack)
    quiet, busy = statistics.median(found.quiet_ms), statistics.median(found.busy_ms)
    million = usage.BATCHES * usage.BATCH / 1e6
    return [
        Figure(
            "usage events accepted durably, through nginx / the same writes to the bare store",
            f"{found.accepted / found.bare:.2f} "
            f"({found.accepted:.0f} events/s / {found.bare:.0f} events/s)",
        ),
        Figure(
            "usage events landed and rolled up, one processor / a plain COPY of them",
            f"{found.landed / found.copied:.2f} "
            f"({found.landed:.0f} events/s / {found.copied:.0f} events/s)",
        ),
        Figure(
            f"usage: {million:.0f} million events drained, start of a processor included",
            f"{found.drained_seconds:.0f} s",
        ),
        Figure(
            f"usage: p99 of a report while {usage.CLIENTS} clients read a month / without",
            f"{found.slowdown:.2f} ({busy:.1f} ms / {quiet:.1f} ms; "
            f"{found.rows_read:.0f} rows/s read)",
            "less than 2",
            found.slowdown < 2,
        ),
    ]


def messages_per_second(bench: Bench) -> list[Figure]:
    on_the_disk(bench)
    found = messages.measure(bench.stack)
    return [
        Figure(
            "birthday messages sent by one worker / published to the bare broker, one by one",
            f"{found.sent / found.published:.2f} "
            f"({found.sent:.0f} messages/s / {found.published:.0f} messages/s)",
        ),
        Figure("birthday messages queued by the scheduler", f"{found.queued:.0f} messages/s"),
    ]


def restores(bench: Bench) -> list[Figure]:
    on_the_disk(bench)
    settings = {**UNLIMITED, **ON_THE_DISK}
    volume = f"{bench.project}_postgres-data"
    place = Engine().run("docker", "volume", "inspect", "--format={{.Mountpoint}}", volume)
    latest = {"restore_time": "latest", "restore_confirm": bench.project, **settings}
    found = backups.measure(
        bench.stack,
        Path(place.strip()),
        lambda: bench.run("restore.yml", seconds=1800, **latest),
    )
    gigabytes = found.megabytes / 1000
    return [
        Figure(
            "pgbench, 4 clients: with WAL received by the backup service / while that is stopped",
            f"{found.with_backup / found.without_backup:.2f} "
            f"({found.with_backup:.0f} / {found.without_backup:.0f} transactions/s)",
        ),
        Figure(
            f"`make restore TIME=latest`, {found.megabytes:.0f} MB / a plain copy of the files",
            f"{found.restored / found.copied:.1f} ({found.restored:.0f} s / {found.copied:.1f} s; "
            f"{found.restored / gigabytes:.0f} s for each GB)",
        ),
        Figure(
            "longest time without an answer while a restored database takes the place",
            f"{found.away:.1f} s",
        ),
        Figure(f"`make drill`, {found.megabytes:.0f} MB", f"{found.drilled:.0f} s"),
        Figure(
            "acknowledged writes lost when every container is killed",
            f"{found.lost_by_kill} of {found.killed}",
            "0",
            found.lost_by_kill == 0,
        ),
        Figure(
            "acknowledged writes lost when PostgreSQL is killed and its data removed",
            f"{found.lost_with_the_disk} of {found.acknowledged}, "
            f"sent in the last {found.oldest_lost:.2f} s",
        ),
    ]


def monitoring_memory(bench: Bench) -> list[Figure]:
    core = set(bench.stack.services())
    bench.run(stack_profiles=["monitoring"])
    time.sleep(MONITORING_SECONDS)
    held, counted = footprint.memory(bench.stack)
    # A change of the API's settings moves it to the other slot.
    core |= {"api-blue", "api-green", "query-blue", "query-green"}
    added = {name: size for name, size in held.items() if name.rpartition("-")[0] not in core}
    total, parts = _added_up(added)
    return [
        Figure(
            f"memory of the profile `monitoring`, {MONITORING_SECONDS} s after start ({counted})",
            f"{total:.0f} MB ({parts})",
            "350 MB without Grafana and Loki",
            total <= 350,
        )
    ]


NOTES = f"""\
- Seconds are medians of {ROUNDS} runs; the playbook and Compose take turns. The databases lie in
  memory, as in `inventories/test`.
- Requests: `h2load`, one thread, {load.CONNECTIONS} connections, {load.PAIRS} pairs of
  {load.REQUESTS} requests, one right after the other on the same machine. A ratio is that of the
  fastest tenth of each side's runs, because whatever else a shared machine does only slows down;
  beside it stands what the pairs say. The clients of nginx speak TLS and HTTP/1.1 and keep their
  connections. The other side is one more container of the same service, asked in plain HTTP/1.1,
  a connection for each request, because gunicorn's sync workers keep none: over a network of
  containers, as clients would reach it without nginx, and on its unix socket, as nginx reaches it
  and no client can. All have the same workers and CPU limits, and the rate limit is out of the way.
- Without metrics means that whatever counts does nothing. Requests per second vary by more than
  that is worth; the CPU time that a request takes, which is what limits them, is counted instead.
- Claims: {claims.CLIENTS} clients at once, each with a connection of its own, {claims.ROUNDS}
  rounds of {claims.SECONDS:.0f} s in which the ways take turns; medians. The naive way locks the
  coupon's row and then asks and writes over four round trips.
- Usage: {usage.BATCHES} batches of {usage.BATCH} events as NDJSON in gzip, {usage.CLIENTS} clients.
  The bare store gets the same entries, packed before, with the same wait for the disk, from as
  many processes; the plain COPY goes into a hypertable with the same index and knows nothing of
  ids. One processor, half a core. Reports: {usage.PER_SECOND} a second, one event each, timed from
  when each was due, in {usage.ROUNDS} rounds of {usage.SECONDS} s without and with readers.
  Readers are processes of nice {usage.READERS_NICE} that make nothing of what they read: clients
  are elsewhere and take the stack no processor.
- Endpoints: {endpoints.CLIENTS} clients on the same machine. The limit is what is answered when
  each sends the next request at once, for {endpoints.SECONDS} s; then requests come at half of
  that pace, and each is timed from when it was due.
- Messages: {messages.MESSAGES} of them, one worker with half a core that sends four at once, and a
  stand-in email service that answers at once. Each is written down by the broker before the next.
- Backups: `pgbench` in {backups.ROUNDS} rounds of {backups.SECONDS} s with and without; medians.
  The restored database is mostly a table of {backups.ROWS} rows that do not compress.
  {backups.WRITERS} clients create items meanwhile; a write is lost that was answered with 201 and
  is not there.
- From a bare machine to healthy HTTPS is not measured here: that needs a bare machine.
"""


STEPS: dict[str, tuple[str, Callable[[Bench], list[Figure]]]] = {
    "start": ("start", start),
    "idle": ("idle memory", idle_memory),
    "nothing": ("nothing to do", nothing_to_do),
    "setting": ("one changed setting", one_setting),
    "images": ("images", images),
    "requests": ("requests per second", requests_per_second),
    "claims": ("claims per second", claims_per_second),
    "endpoints": ("endpoints at half of their limits", patience),
    "usage": ("usage", usage_per_second),
    "messages": ("birthday messages", messages_per_second),
    "backups": ("backups and restores", restores),
    "monitoring": ("memory of the profile `monitoring`", monitoring_memory),
}


def measure(bench: Bench, steps: list[str]) -> tuple[list[Figure], bool]:
    """Every figure of these steps that could be had, and whether that is all of them."""
    figures: list[Figure] = []
    complete = True
    for name, step in (STEPS[key] for key in steps):
        say(f"{name} ...")
        try:
            bench.stack.wait_healthy()
            figures += step(bench)
        except Exception as error:  # noqa: BLE001 - the other figures are still worth having
            complete = False
            say(f"{name}: {type(error).__name__}: {error}")
            figures.append(Figure(name, "could not be measured", "", met=False))
    return figures, complete


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--project", default="compose-stack-bench")
    parser.add_argument("--directory", default="/opt/compose-stack-bench")
    parser.add_argument("--http-port", type=int, default=28080)
    parser.add_argument("--https-port", type=int, default=28443)
    parser.add_argument("--output", type=Path, default=PAGE, help="page to write (%(default)s)")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=STEPS,
        metavar="STEP",
        help=f"print these alone, and write no page; of: {', '.join(STEPS)}",
    )
    return parser.parse_args()


def main() -> int:
    options = arguments()
    if os.geteuid() != 0:
        sys.exit("make bench deploys to this machine: run it as root")
    if problem := load.missing():
        sys.exit(problem)
    bench = Bench(options.project, options.directory, options.http_port, options.https_port)
    say("images ...")
    bench.run("build.yml", seconds=900)
    bench.clean()
    try:
        say("first deployment ...")
        bench.run()
        figures, complete = measure(bench, options.only or list(STEPS))
    finally:
        say("cleaning up ...")
        bench.clean()
    if not options.only:
        write(options.output, report(figures, NOTES))
    print(table(figures))
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
