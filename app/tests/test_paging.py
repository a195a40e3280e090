"""CS-2: /api/items is paged by keyset."""

from __future__ import annotations

import base64
import struct
from typing import Any

import pytest
from flask.testing import FlaskClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compose_app import cursor
from conftest import Backends


@given(st.integers(1, 2**63 - 1))
def test_cursor_round_trip(last_id: int) -> None:
    """CS-2: a cursor leads back to its id, and needs no escaping in a URL."""
    written = cursor.encode(last_id)
    assert cursor.decode(written) == last_id
    assert written.replace("-", "").replace("_", "").isalnum()


@given(st.text(max_size=64) | st.binary(max_size=24).map(lambda b: base64.b64encode(b).decode()))
def test_cursor_refuses_all_else(text: str) -> None:
    """CS-2: what `encode` never wrote is refused, and nothing but ValueError is raised."""
    try:
        last_id = cursor.decode(text)
    except ValueError:
        return
    assert cursor.encode(last_id) == text


@given(st.text(min_size=1).filter(lambda text: "\0" not in text))
def test_text_cursor_round_trip(last: str) -> None:
    """CO-2: a cursor leads back to its name, and needs no escaping in a URL but for =."""
    written = cursor.encode_text(last)
    assert cursor.decode_text(written) == last
    assert written.rstrip("=").replace("-", "").replace("_", "").isalnum()


@given(st.text(max_size=64) | st.binary(max_size=24).map(lambda b: base64.b64encode(b).decode()))
def test_text_cursor_refuses_all_else(text: str) -> None:
    """CO-2: what `encode_text` never wrote is refused, and nothing but ValueError is raised."""
    try:
        last = cursor.decode_text(text)
    except ValueError:
        return
    assert cursor.encode_text(last) == text


@pytest.mark.parametrize(("version", "last_id"), [(0, 5), (2, 5), (1, 0), (1, 2**63)])
def test_cursor_refuses_other_forms(version: int, last_id: int) -> None:
    """CS-2: another version, or an id out of bounds."""
    with pytest.raises(ValueError, match="is not a cursor"):
        cursor.decode(base64.urlsafe_b64encode(struct.pack(">BQ", version, last_id)).decode())


def _insert(backends: Backends, count: int) -> list[int]:
    with backends.connect() as connection:
        rows = connection.execute(
            "INSERT INTO items (name, description, price_cents, quantity)"
            " SELECT gen_random_uuid()::text, '', 1, 1 FROM generate_series(1, %s) RETURNING id",
            (count,),
        ).fetchall()
    return [row[0] for row in rows]


def _pages(client: FlaskClient, limit: int) -> Any:
    url: str | None = f"/api/items?limit={limit}"
    while url:
        page = client.get(url).get_json()
        assert len(page["items"]) <= limit
        yield [item["id"] for item in page["items"]]
        following = page["next_cursor"]
        url = following and f"/api/items?limit={limit}&cursor={following}"


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    count=st.integers(0, 25),
    limit=st.integers(1, 12),
    added=st.lists(st.integers(0, 3), max_size=5),
    deleted=st.lists(st.integers(0, 24), max_size=5),
)
def test_every_item_once_in_order(
    client: FlaskClient,
    clean: Backends,
    count: int,
    limit: int,
    added: list[int],
    deleted: list[int],
) -> None:
    """CS-2: items that exist throughout come exactly once and in order, whatever comes and goes."""
    with clean.connect() as connection:
        connection.execute("TRUNCATE items")
        before = _insert(clean, count)
        gone = {before[index] for index in deleted if index < count}
        seen: list[int] = []
        for number, page in enumerate(_pages(client, limit)):
            seen += page
            if number < len(added):
                _insert(clean, added[number])
            if number == 0:
                connection.execute("DELETE FROM items WHERE id = ANY(%s)", (list(gone),))
    assert seen == sorted(set(seen))
    assert [id_ for id_ in seen if id_ in set(before) - gone] == [
        id_ for id_ in before if id_ not in gone
    ]


def test_last_page_has_no_cursor(client: FlaskClient, clean: Backends) -> None:
    """CS-2: a full last page is known to be the last."""
    _insert(clean, 4)
    assert [len(page) for page in _pages(client, 2)] == [2, 2]
    assert len(client.get("/api/items").get_json()["items"]) == 4
