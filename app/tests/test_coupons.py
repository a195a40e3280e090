"""CO-1 to CO-3: /api/coupons."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from flask.testing import FlaskClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compose_app.coupons import store as coupons
from compose_app.coupons.store import AlreadyClaimed, CouponStore, NoneLeft, NoSuchCoupon
from compose_app.db import Database
from conftest import APP, Backends, wait_for

CLIENTS = 16


def create(client: FlaskClient, name: str = "summer", amount: Any = 5) -> Any:
    return client.post("/api/coupons", json={"name": name, "amount": amount})


def claim(client: FlaskClient, user: Any = "ada", coupon: Any = "summer") -> Any:
    return client.post("/api/coupons/claim", json={"user_id": user, "coupon_name": coupon})


def batch(client: FlaskClient, users: Any, coupon: Any = "summer") -> Any:
    body = {"coupon_name": coupon, "user_ids": users}
    return client.post("/api/coupons/claim/batch", json=body)


def problem(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.get_json()["type"].removeprefix("/docs#problem-")


def faults(answer: Any) -> list[list[str]]:
    assert answer.status_code == 422, answer.get_data()
    return [error["location"] for error in answer.get_json()["errors"]]


Stores = Callable[[int], list[CouponStore]]


@pytest.fixture
def stores(clean: Backends) -> Iterator[Stores]:
    """Gives so many stores with a connection each, as workers have them; always the same ones."""
    made: list[Database] = []

    def give(count: int) -> list[CouponStore]:
        for _ in range(len(made), count):
            made.append(Database(clean.environ["DATABASE_URL"], APP))
            made[-1].query("SELECT 1")
        return [CouponStore(database) for database in made[:count]]

    yield give
    for database in made:
        database.close()


def ledger(backends: Backends) -> dict[str, tuple[int, int, int]]:
    """Amount, rest and claims of each coupon."""
    with backends.connect() as connection:
        rows = connection.execute(
            "SELECT name, amount, remaining_amount,"
            " (SELECT count(*) FROM claims WHERE coupon_name = name) FROM coupons"
        ).fetchall()
    return {name: (amount, rest, claims) for name, amount, rest, claims in rows}


def at_once(jobs: list[Callable[[], Any]]) -> list[Any]:
    """What each answered or raised; all begin together."""
    start = threading.Barrier(len(jobs))

    def run(job: Callable[[], Any]) -> Any:
        start.wait()
        try:
            return job()
        except (AlreadyClaimed, NoneLeft, NoSuchCoupon) as error:
            return type(error)

    with ThreadPoolExecutor(len(jobs)) as pool:
        return list(pool.map(run, jobs))


def lined_up(backends: Backends, jobs: list[Callable[[], Any]]) -> list[Any]:
    """The same, and all have begun their statement and wait for the coupon before one is let in."""

    def waiting() -> bool:
        with backends.connect() as connection:
            return connection.execute(
                "SELECT count(*) FROM pg_locks WHERE NOT granted"
            ).fetchone() == (len(jobs),)

    with ThreadPoolExecutor(1) as pool, backends.connect() as connection:
        with connection.transaction():
            connection.execute("SELECT FROM coupons FOR NO KEY UPDATE")
            answers = pool.submit(at_once, jobs)
            wait_for("all to wait", waiting)
        return answers.result()


def test_schema(clean: Backends) -> None:
    """CO-1: the tables exactly."""
    with clean.connect() as connection:
        columns = connection.execute(
            "SELECT table_name, column_name, data_type, character_maximum_length, is_nullable,"
            " column_default FROM information_schema.columns"
            " WHERE table_name IN ('coupons', 'claims') ORDER BY table_name, ordinal_position"
        ).fetchall()
        constraints = connection.execute(
            "SELECT conrelid::regclass::text, pg_get_constraintdef(oid) FROM pg_constraint"
            " WHERE conrelid IN ('coupons'::regclass, 'claims'::regclass) AND contype <> 'n'"
            " ORDER BY 1, 2"
        ).fetchall()
        indexes = connection.execute(
            "SELECT indexdef FROM pg_indexes WHERE tablename = 'claims'"
        ).fetchall()
    text, stamp = "character varying", "timestamp with time zone"
    assert columns == [
        ("claims", "id", "integer", None, "NO", "nextval('claims_id_seq'::regclass)"),
        ("claims", "user_id", text, 255, "NO", None),
        ("claims", "coupon_name", text, 255, "YES", None),
        ("claims", "created_at", stamp, None, "YES", "now()"),
        ("coupons", "name", text, 255, "NO", None),
        ("coupons", "amount", "integer", None, "NO", None),
        ("coupons", "remaining_amount", "integer", None, "NO", None),
        ("coupons", "created_at", stamp, None, "YES", "now()"),
    ]
    assert constraints == [
        ("claims", "FOREIGN KEY (coupon_name) REFERENCES coupons(name)"),
        ("claims", "PRIMARY KEY (id)"),
        ("claims", "UNIQUE (user_id, coupon_name)"),
        ("coupons", "CHECK ((amount > 0))"),
        ("coupons", "CHECK ((remaining_amount >= 0))"),
        ("coupons", "PRIMARY KEY (name)"),
    ]
    assert any(definition.endswith("btree (coupon_name)") for (definition,) in indexes)


def test_from_creation_to_the_last_piece(client: FlaskClient) -> None:
    """CO-2: 201 with what was made, and each way it can be refused by a type of its own."""
    created = create(client, amount=2)
    assert created.status_code == 201
    coupon = created.get_json()
    stamp = coupon.pop("created_at")
    assert coupon == {"name": "summer", "amount": 2, "remaining_amount": 2}
    assert problem(create(client)) == (409, "name-taken")

    granted = claim(client)
    assert granted.status_code == 201
    assert granted.get_json().items() >= {"user_id": "ada", "coupon_name": "summer"}.items()
    assert problem(claim(client)) == (409, "already-claimed")
    assert problem(claim(client, coupon="winter")) == (404, "coupon-not-found")
    assert claim(client, "bob").status_code == 201
    assert problem(claim(client, "eve")) == (409, "none-left")
    # Also when nothing is left: it is what their claim came to.
    assert problem(claim(client)) == (409, "already-claimed")

    found = client.get(created.headers["Location"]).get_json()
    claims = found.pop("claims")
    assert [entry["user_id"] for entry in claims] == ["ada", "bob"]
    assert all(entry.keys() == {"user_id", "created_at"} for entry in claims)
    assert found == {**coupon, "remaining_amount": 0, "created_at": stamp, "next_cursor": None}
    assert problem(client.get("/api/coupons/winter")) == (404, "coupon-not-found")


@pytest.mark.parametrize(
    "name", ["claim", "Black Friday", "Frühling \U0001f337", "50%", "a?b#c&d", "%2e", "é" * 255]
)
def test_names(client: FlaskClient, name: str) -> None:
    """CO-2: what a name may be leads to the coupon as a path, too."""
    created = create(client, name)
    assert created.status_code == 201
    assert created.headers["Location"] == f"/api/coupons/{quote(name, safe='')}"
    assert claim(client, "ada", name).status_code == 201
    assert client.get(created.headers["Location"]).get_json()["name"] == name


@pytest.mark.parametrize("name", ["", "a/b", "..", ".", "a\0b", "a\nb", "x" * 256, 7, None])
def test_invalid_names(client: FlaskClient, name: Any) -> None:
    """CO-2: 422 that names the field, wherever a name is given."""
    assert faults(create(client, name)) == [["body", "name"]]
    assert faults(claim(client, coupon=name)) == [["body", "coupon_name"]]
    assert faults(batch(client, ["ada"], name)) == [["body", "coupon_name"]]


@pytest.mark.parametrize("amount", [0, -1, 2**31, 2**64, 10**40, 1.5, "5", True, None])
def test_invalid_amounts(client: FlaskClient, amount: Any) -> None:
    """CO-2: 422 that names the field."""
    assert faults(create(client, amount=amount)) == [["body", "amount"]]


@pytest.mark.parametrize("user", ["", "a\0b", "x" * 256, 7, None, ["ada"]])
def test_invalid_users(client: FlaskClient, user: Any) -> None:
    """CO-2: 422 that names the field, and the place in a batch."""
    assert faults(claim(client, user)) == [["body", "user_id"]]
    assert faults(batch(client, ["ada", user])) == [["body", "user_ids", 1]]


@pytest.mark.parametrize("users", [[], None, "ada", {"ada": 1}, ["ada", "ada"], ["x"] * 1001])
def test_invalid_batches(client: FlaskClient, users: Any) -> None:
    """CO-2: 422 that names the field."""
    assert faults(batch(client, users)) == [["body", "user_ids"]]


def test_claims_are_paged(client: FlaskClient, clean: Backends) -> None:
    """CO-2: each claim on exactly one page, in the order they were granted."""
    create(client, amount=30)
    create(client, "winter", amount=30)
    for number in range(25):
        claim(client, f"user-{number}", "summer")
        claim(client, f"user-{number}", "winter")
    seen: list[str] = []
    url = "/api/coupons/summer?limit=10"
    while True:
        page = client.get(url).get_json()
        assert (page["amount"], page["remaining_amount"]) == (30, 5)
        seen += [entry["user_id"] for entry in page["claims"]]
        if not page["next_cursor"]:
            break
        url = f"/api/coupons/summer?limit=10&cursor={page['next_cursor']}"
    assert seen == [f"user-{number}" for number in range(25)]
    assert faults(client.get("/api/coupons/summer?limit=0")) == [["query", "limit"]]


def test_batch(client: FlaskClient, clean: Backends) -> None:
    """CO-2: in the order given, while there are pieces; told apart are those who had one before."""
    create(client, amount=4)
    claim(client, "carol")
    answer = batch(client, ["dave", "carol", "bob", "ada", "eve", "zoe"])
    assert answer.status_code == 200
    outcomes = {entry["user_id"]: entry["outcome"] for entry in answer.get_json()["outcomes"]}
    assert outcomes == {
        "dave": "claimed",
        "carol": "already-claimed",
        "bob": "claimed",
        "ada": "claimed",
        "eve": "none-left",
        "zoe": "none-left",
    }
    assert list(outcomes) == ["dave", "carol", "bob", "ada", "eve", "zoe"]
    assert answer.get_json()["claimed"] == 3
    assert ledger(clean) == {"summer": (4, 0, 4)}
    again = batch(client, ["dave", "eve"]).get_json()
    assert [entry["outcome"] for entry in again["outcomes"]] == ["already-claimed", "none-left"]
    assert problem(batch(client, ["ada"], "winter")) == (404, "coupon-not-found")


def test_fifty_users_on_five_pieces(stores: Stores, clean: Backends) -> None:
    """CO-3: exactly five are granted, and the others hear that none is left."""
    pool = stores(50)
    pool[0].create("summer", 5)
    answers = lined_up(
        clean, [partial(store.claim, f"u{n}", "summer") for n, store in enumerate(pool)]
    )
    assert Counter(answer for answer in answers if isinstance(answer, type)) == {NoneLeft: 45}
    assert ledger(clean) == {"summer": (5, 0, 5)}


def test_one_user_ten_times(stores: Stores, clean: Backends) -> None:
    """CO-3: exactly one is granted, and no piece is lost to the others."""
    pool = stores(10)
    pool[0].create("summer", 5)
    answers = lined_up(clean, [partial(store.claim, "ada", "summer") for store in pool])
    assert Counter(answer for answer in answers if isinstance(answer, type)) == {AlreadyClaimed: 9}
    assert ledger(clean) == {"summer": (5, 4, 1)}


def test_over_http(gunicorn: Callable[..., Any], clean: Backends) -> None:
    """CO-3: the same through four real workers."""
    server = gunicorn(WEB_CONCURRENCY="4")
    for name in ("fifty", "ten"):
        body = {"name": name, "amount": 5}
        assert server.request("POST", "/api/coupons", body).status == 201

    def ask(user: str, name: str) -> int:
        body = {"user_id": user, "coupon_name": name}
        return int(server.request("POST", "/api/coupons/claim", body).status)

    fifty = at_once([partial(ask, f"u{n}", "fifty") for n in range(50)])
    ten = at_once([partial(ask, "ada", "ten")] * 10)
    assert (Counter(fifty), Counter(ten)) == ({201: 5, 409: 45}, {201: 1, 409: 9})
    assert ledger(clean) == {"fifty": (5, 0, 5), "ten": (5, 4, 1)}


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    amount=st.integers(1, 6),
    jobs=st.lists(
        st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=5, unique=True),
        min_size=1,
        max_size=CLIENTS,
    ),
)
def test_any_claims_at_once(
    stores: Stores, clean: Backends, amount: int, jobs: list[list[str]]
) -> None:
    """CO-3: singly or in batches, by whomever: as many are granted as there are, one a user."""
    with clean.connect() as connection:
        connection.execute("TRUNCATE coupons, claims RESTART IDENTITY")
    pool = stores(len(jobs))
    pool[0].create("summer", amount)

    def run(store: CouponStore, users: list[str]) -> tuple[set[str], set[str]]:
        if len(users) > 1:
            return store.claim_many(users, "summer")
        store.claim(users[0], "summer")
        return {users[0]}, set()

    answers = at_once([partial(run, store, users) for store, users in zip(pool, jobs, strict=True)])
    granted: list[str] = []
    for answer, users in zip(answers, jobs, strict=True):
        claimed, before = (set(), set()) if isinstance(answer, type) else answer
        granted += claimed
        assert claimed | before <= set(users)
    wanted = {user for users in jobs for user in users}
    assert len(granted) == len(set(granted)) == min(amount, len(wanted))
    assert ledger(clean) == {"summer": (amount, amount - len(granted), len(granted))}


UPDATE_FIRST = """
WITH taken AS (
    UPDATE coupons SET remaining_amount = remaining_amount - 1
    WHERE name = %(coupon)s AND remaining_amount > 0 RETURNING name
), granted AS (
    INSERT INTO claims (user_id, coupon_name) SELECT %(user)s, name FROM taken
    ON CONFLICT DO NOTHING RETURNING id, user_id, coupon_name, created_at
)
SELECT granted.*, false AS already FROM coupons LEFT JOIN granted ON true
WHERE name = %(coupon)s
"""
INSERT_FIRST = """
WITH granted AS (
    INSERT INTO claims (user_id, coupon_name)
    SELECT %(user)s, name FROM coupons WHERE name = %(coupon)s AND remaining_amount > 0
    ON CONFLICT DO NOTHING RETURNING id, user_id, coupon_name, created_at
), taken AS (
    UPDATE coupons SET remaining_amount = remaining_amount - 1
    WHERE name = (SELECT coupon_name FROM granted) AND remaining_amount > 0 RETURNING name
)
SELECT granted.*, false AS already FROM coupons LEFT JOIN granted ON true
WHERE name = %(coupon)s
"""


@pytest.mark.parametrize(
    ("statement", "test"),
    [
        (UPDATE_FIRST, test_one_user_ten_times),
        (INSERT_FIRST, test_fifty_users_on_five_pieces),
    ],
    ids=["leaks stock", "oversells"],
)
def test_wrong_statements_are_caught(
    stores: Stores,
    clean: Backends,
    monkeypatch: pytest.MonkeyPatch,
    statement: str,
    test: Callable[..., None],
) -> None:
    """CO-3: two that look right: one leaks stock, the other oversells; the tests above say so."""
    monkeypatch.setattr(coupons, "_CLAIM", statement)
    with pytest.raises(AssertionError):
        test(stores, clean)


def test_sold_out_without_a_lock(stores: Stores, clean: Backends) -> None:
    """CO-3: who comes too late, or again, waits for nobody who holds the coupon's row."""
    (store,) = stores(1)
    store.create("gone", 1)
    store.claim("ada", "gone")
    store.create("there", 5)
    store.claim("ada", "there")
    with clean.connect() as connection, connection.transaction():
        connection.execute("SELECT FROM coupons FOR UPDATE")
        with pytest.raises(NoneLeft):
            store.claim("bob", "gone")
        with pytest.raises(AlreadyClaimed):
            store.claim("ada", "there")
        assert store.claim_many(["ada", "bob"], "gone") == (set(), {"ada"})


def test_plans_do_not_look_through_a_coupons_claims(stores: Stores, clean: Backends) -> None:
    """CO-3: not even of one that is new and hot, of which the statistics know nothing yet."""
    (store,) = stores(1)
    with clean.connect() as connection:
        store.create("old", 1)
        connection.execute("ANALYZE coupons, claims")
        store.create("hot", 100_000)
        for chunk in range(5):
            store.claim_many([f"u{chunk}-{n}" for n in range(1000)], "hot")
        cursor = psycopg.ClientCursor(connection)
        for statement in (coupons._CLAIM, coupons._CLAIM_MANY):
            parameters = {"user": "ada", "users": ["ada", "bob"], "coupon": "hot"}
            plan = cursor.execute(f"EXPLAIN {statement}", parameters).fetchall()
            used = {line for (line,) in plan if "claims" in line and "Scan" in line}
            assert used
            assert all("claims_user_id_coupon_name_key" in line for line in used), used


@pytest.mark.parametrize(
    "analyzed", [None, 3], ids=["no statistics", "statistics of a small table"]
)
def test_a_batch_looks_at_few_claims(stores: Stores, clean: Backends, analyzed: int | None) -> None:
    """CO-3: by a plan, too, that a connection made while there were few, and keeps."""
    (store,) = stores(1)
    store.create("hot", 100_000)

    def claim(batch: int, size: int = 500) -> None:
        users = [f"{batch}-{number}" for number in range(size)]
        assert store.claim_many(users, "hot") == (set(users), set())

    def looked_at() -> int:
        store._database.query("SELECT pg_stat_force_next_flush()")
        with clean.connect() as connection:
            ((count,),) = connection.execute(
                "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_user_tables"
                " WHERE relname = 'claims'"
            ).fetchall()
        return int(count)

    if analyzed:
        claim(0, analyzed)
        with clean.connect() as connection:
            connection.execute("ANALYZE coupons, claims")
    for batch in range(1, 11):
        claim(batch)
    before = looked_at()
    claim(11)
    assert looked_at() - before <= 500
