"""Claims per second on one hot coupon, by several clients at once, beside the naive way."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.harness import Stack

CLIENTS = 4
ROUNDS = 5
SECONDS = 2.0
BATCH = 1000

# Runs in one more container of the API's service: with its image, its network and its role.
SCRIPT = """
import json, multiprocessing, sys, time, uuid

from compose_app.config import Settings
from compose_app.coupons.store import CouponStore
from compose_app.db import Database

clients, rounds, seconds, batch = json.loads(sys.argv[1])
settings = Settings.from_environ()


def connected():
    database = Database(settings.database_url, settings.database_password.get_secret_value())
    database.query("SELECT 1")
    return database


def one_statement(database, coupon):
    CouponStore(database).claim(str(uuid.uuid4()), coupon)
    return 1


def in_batches(database, coupon):
    users = [str(uuid.uuid4()) for _ in range(batch)]
    return len(CouponStore(database).claim_many(users, coupon)[0])


def select_for_update(database, coupon):
    user = str(uuid.uuid4())
    connection = database._connected()
    with connection.transaction():
        left = connection.execute(
            "SELECT remaining_amount FROM coupons WHERE name = %s FOR UPDATE", (coupon,)
        ).fetchone()["remaining_amount"]
        assert left > 0
        assert not connection.execute(
            "SELECT FROM claims WHERE user_id = %s AND coupon_name = %s", (user, coupon)
        ).fetchone()
        connection.execute(
            "INSERT INTO claims (user_id, coupon_name) VALUES (%s, %s)", (user, coupon)
        )
        connection.execute(
            "UPDATE coupons SET remaining_amount = remaining_amount - 1 WHERE name = %s",
            (coupon,),
        )
    return 1


def client(way, coupon, start, done):
    database = connected()
    start.wait()
    until, count = time.monotonic() + seconds, 0
    while time.monotonic() < until:
        count += way(database, coupon)
    done.put(count)


def per_second(way):
    coupon = f"measured {uuid.uuid4()}"
    database = connected()
    CouponStore(database).create(coupon, 2_000_000_000)
    database.close()
    start, done = multiprocessing.Barrier(clients), multiprocessing.Queue()
    jobs = [
        multiprocessing.Process(target=client, args=(way, coupon, start, done))
        for _ in range(clients)
    ]
    for job in jobs:
        job.start()
    total = sum(done.get(timeout=60) for _ in jobs)
    for job in jobs:
        job.join()
    return total / seconds


ways = (one_statement, select_for_update, in_batches)
found = {way.__name__: [] for way in ways}
for turn in range(rounds):
    # Whoever comes second finds a warmer machine.
    for way in ways if turn % 2 == 0 else reversed(ways):
        found[way.__name__].append(per_second(way))
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Claims:
    """Claims per second, one figure a round."""

    one_statement: list[float]
    select_for_update: list[float]
    in_batches: list[float]

    @property
    def ratio(self) -> float:
        """One statement over the naive transaction, the median of the rounds."""
        pairs = zip(self.one_statement, self.select_for_update, strict=True)
        return statistics.median(ours / theirs for ours, theirs in pairs)


def measure(stack: Stack) -> Claims:
    said = stack.compose(
        *("run", "--rm", "--no-deps", "--no-TTY"),
        *("--env", "PROMETHEUS_MULTIPROC_DIR=/tmp", stack.api_slot(), "python3", "-c", SCRIPT),
        json.dumps([CLIENTS, ROUNDS, SECONDS, BATCH]),
    )
    return Claims(**json.loads(said.splitlines()[-1]))
