"""BM-1: /api/user."""

from __future__ import annotations

import datetime
import zoneinfo
from typing import Any

import pytest
from flask.testing import FlaskClient

USER = {
    "first_name": "Ada",
    "last_name": "Lovelace",
    "birthday": "1915-12-10",
    "time_zone": "Europe/London",
    "email": "ada@example.org",
}


def create(client: FlaskClient, **changes: Any) -> Any:
    return client.post("/api/user", json={**USER, **changes})


def problem(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.get_json()["type"].removeprefix("/docs#problem-")


def test_create_read_change_delete(client: FlaskClient) -> None:
    """BM-1: 201 with Location, 200, 200, 204, then 404."""
    created = create(client)
    assert created.status_code == 201
    user = created.get_json()
    assert user.items() >= USER.items()
    path = created.headers["Location"]
    assert path == f"/api/user/{user['id']}"
    assert client.get(path).get_json() == user

    moved = {**USER, "time_zone": "Asia/Tokyo", "birthday": "1915-12-11", "last_name": "King"}
    changed = client.put(path, json=moved)
    assert changed.status_code == 200
    assert changed.get_json() == client.get(path).get_json()
    assert changed.get_json().items() >= {**moved, "id": user["id"]}.items()

    deleted = client.delete(path)
    assert (deleted.status_code, deleted.data) == (204, b"")
    for answer in (client.get(path), client.delete(path), client.put(path, json=USER)):
        assert problem(answer) == (404, "user-not-found")


def test_what_comes_next(client: FlaskClient) -> None:
    """BM-2: the user is told the day and the moment, and both follow a change."""
    now = datetime.datetime.now(datetime.UTC)
    for zone in ("Pacific/Kiritimati", "Etc/GMT+12", "Europe/London"):
        path = create(client, time_zone=zone, birthday="2000-02-29").headers["Location"]
        user = client.get(path).get_json()
        due = datetime.datetime.fromisoformat(user["next_message_at"])
        assert now < due < now + datetime.timedelta(days=367)
        local = due.astimezone(zoneinfo.ZoneInfo(zone))
        assert (local.date().isoformat(), local.hour) == (user["next_birthday"], 9)
        assert user["next_birthday"][5:] in ("02-28", "02-29")
        moved = client.put(path, json={**USER, "time_zone": zone, "birthday": "2000-07-01"})
        assert moved.get_json()["next_birthday"][5:] == "07-01"
        client.delete(path)


def test_address_taken(client: FlaskClient) -> None:
    """BM-1: one user an address, whatever its case; the address is free again afterwards."""
    path = create(client).headers["Location"]
    other = create(client, email="bob@example.org").headers["Location"]
    for answer in (
        create(client, email="ADA@example.org"),
        client.put(other, json={**USER, "email": "Ada@Example.org"}),
    ):
        assert problem(answer) == (409, "email-taken")
        assert answer.get_json()["errors"] == [
            {"location": ["body", "email"], "message": "is taken"}
        ]
    assert client.put(path, json={**USER, "email": "ADA@example.org"}).status_code == 200
    client.delete(path)
    assert create(client).status_code == 201


WRONG: dict[str, list[Any]] = {
    "first_name": ["", "  ", "x" * 101, "a\0b", 7, None],
    "last_name": ["", "\t", "x" * 101, "\0", [], None],
    "birthday": [
        *("", "2000-02-30", "2001-02-29", "2000-1-1", "20000101", "2000-W01-1", " 2000-01-1"),
        *("1899-12-31", "0000-00-00", "10000-01-01", "2000-01-01T00:00:00", "9999-12-31"),
        *(0, 951782400, None, True),
    ],
    "time_zone": [
        *("", "Europe/Nowhere", "europe/london", "../etc/passwd", "UTC+1", "\0", "localtime"),
        *("x" * 10_000, 7, None),
    ],
    "email": [
        *("", "ada", "@example.org", "ada@", "ada@example", "a da@example.org", "a@b@example.org"),
        *("ada@exa\0mple.org", "ada@example..org", "ada@example.org\n"),
        *("x" * 65 + "@example.org", "a@" + "x" * 260 + ".org", 7, None),
    ],
    "nickname": ["Ada"],
}


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, values in WRONG.items() for value in values]
)
def test_invalid_values(client: FlaskClient, field: str, value: Any) -> None:
    """BM-1: 422 that names the field, when a user is created and when one is changed."""
    path = create(client).headers["Location"]
    for answer in (
        create(client, **{"email": "bob@example.org", field: value}),
        client.put(path, json={**USER, field: value}),
    ):
        assert answer.status_code == 422
        assert [error["location"] for error in answer.get_json()["errors"]] == [["body", field]]
    assert client.get(path).get_json().items() >= USER.items()


def test_values_that_are_missing(client: FlaskClient) -> None:
    """BM-1: all of them are named, and a change gives all of them anew."""
    path = create(client).headers["Location"]
    for answer in (client.post("/api/user", json={}), client.put(path, json={})):
        located = {error["location"][1] for error in answer.get_json()["errors"]}
        assert located == USER.keys()


def test_bounds_are_accepted(client: FlaskClient) -> None:
    """BM-1: the longest names, the oldest and the newest, a leap day, names zones once had."""
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    for number, changes in enumerate(
        [
            {"first_name": "\U0001f600" * 100, "last_name": "é" * 100},
            {"birthday": "1900-01-01"},
            {"birthday": "2000-02-29"},
            {"birthday": today},
            {"time_zone": "Asia/Calcutta"},
            {"time_zone": "US/Pacific"},
            {"time_zone": "America/Argentina/ComodRivadavia"},
            {"time_zone": "Etc/GMT+12"},
            {"email": "x" * 64 + "@" + "y" * 185 + ".org"},
            {"email": "ada+list@müller.example"},
        ]
    ):
        answer = create(client, **{"email": f"ada-{number}@example.org", **changes})
        assert answer.status_code == 201, answer.get_json()
        assert answer.get_json().items() >= changes.items()


@pytest.mark.parametrize("user_id", ["0", "-1", "1.5", "x", str(2**63), "1_0", " 1"])
def test_invalid_ids(client: FlaskClient, user_id: str) -> None:
    """BM-1: 422 that names the field."""
    answer = client.get(f"/api/user/{user_id}")
    assert answer.status_code == 422
    assert answer.get_json()["errors"][0]["location"] == ["path", "id"]
