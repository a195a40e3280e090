"""CS-2: /api/items."""

from __future__ import annotations

from typing import Any

import pytest
from flask.testing import FlaskClient

ITEM = {"name": "Blue kettle", "description": "1.7 l", "price_cents": 3490, "quantity": 12}


def create(client: FlaskClient, **changes: Any) -> Any:
    return client.post("/api/items", json={**ITEM, **changes})


def test_create_read_delete(client: FlaskClient) -> None:
    """CS-2: 201 with Location, 200, 204, then 404."""
    created = create(client)
    assert created.status_code == 201
    item = created.get_json()
    assert item.items() >= ITEM.items()
    assert item["created_at"].endswith("+00:00")
    path = created.headers["Location"]
    assert path == f"/api/items/{item['id']}"
    assert client.get(path).get_json() == item
    deleted = client.delete(path)
    assert (deleted.status_code, deleted.data) == (204, b"")
    for answer in (client.get(path), client.delete(path)):
        assert answer.status_code == 404
        assert answer.get_json()["type"] == "/docs#problem-item-not-found"


def test_defaults(client: FlaskClient) -> None:
    """CS-2: description and quantity may be left out."""
    item = client.post("/api/items", json={"name": "x", "price_cents": 0}).get_json()
    assert (item["description"], item["quantity"]) == ("", 0)


def test_duplicate_name(client: FlaskClient) -> None:
    """CS-2: 409, and the connection stays usable."""
    assert create(client).status_code == 201
    again = create(client)
    assert again.status_code == 409
    assert again.get_json()["type"] == "/docs#problem-name-taken"
    assert again.get_json()["errors"] == [{"location": ["body", "name"], "message": "is taken"}]
    assert len(client.get("/api/items").get_json()["items"]) == 1


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": "   "}, "name"),
        ({"name": "a\0b"}, "name"),
        ({"name": "x" * 201}, "name"),
        ({"name": None}, "name"),
        ({"name": 7}, "name"),
        ({"description": "x" * 2001}, "description"),
        ({"description": "\0"}, "description"),
        ({"price_cents": -1}, "price_cents"),
        ({"price_cents": 2**31}, "price_cents"),
        ({"price_cents": 2**64}, "price_cents"),
        ({"price_cents": 10**40}, "price_cents"),
        ({"price_cents": 1.5}, "price_cents"),
        ({"price_cents": "5"}, "price_cents"),
        ({"price_cents": True}, "price_cents"),
        ({"quantity": -1}, "quantity"),
        ({"quantity": 2**31}, "quantity"),
        ({"colour": "blue"}, "colour"),
    ],
)
def test_invalid_values(client: FlaskClient, changes: dict[str, Any], field: str) -> None:
    """CS-2: 422 that names the field."""
    answer = create(client, **changes)
    assert answer.status_code == 422
    assert ["body", field] in [error["location"] for error in answer.get_json()["errors"]]


def test_every_fault_is_named(client: FlaskClient) -> None:
    """CS-2: all faults at once."""
    answer = client.post("/api/items", json={"name": "", "quantity": -1, "colour": 1})
    located = {error["location"][1] for error in answer.get_json()["errors"]}
    assert located == {"name", "quantity", "price_cents", "colour"}


def test_bounds_are_accepted(client: FlaskClient) -> None:
    """CS-2: the largest values there are; 200 characters of four bytes."""
    answer = create(client, name="\U0001f600" * 200, price_cents=2**31 - 1, quantity=2**31 - 1)
    assert answer.status_code == 201
    assert client.get(answer.headers["Location"]).get_json()["name"] == "\U0001f600" * 200


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b'"\xff"',
        b'{"name": "\\ud800", "price_cents": 1}',
        b'{"name": "x", "price_cents": NaN}',
        b'{"name": "x", "price_cents": 1e999}',
        b'{"name": "x", "price_cents": 1} trailing',
        b"[" * 65 + b"]" * 65,
        b"[" * 100_000,
        b'{"a":' * 2000 + b"1" + b"}" * 2000,
    ],
)
def test_invalid_json(client: FlaskClient, body: bytes) -> None:
    """CS-2: 400 for what is not JSON, or nests too deep."""
    answer = client.post("/api/items", data=body, content_type="application/json")
    assert answer.status_code == 400
    assert answer.get_json()["type"] == "/docs#problem-invalid-json"


@pytest.mark.parametrize("body", [b"null", b"[]", b'"x"', b"5", b"{}", b"[" * 64 + b"]" * 64])
def test_json_of_another_shape(client: FlaskClient, body: bytes) -> None:
    """CS-2: 422 for JSON that is no item."""
    answer = client.post("/api/items", data=body, content_type="application/json")
    assert answer.status_code == 422


def test_duplicate_json_keys(client: FlaskClient) -> None:
    """CS-2: the last counts, as in every browser."""
    body = b'{"name": "a", "name": "b", "price_cents": 1}'
    answer = client.post("/api/items", data=body, content_type="application/json")
    assert (answer.status_code, answer.get_json()["name"]) == (201, "b")


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "multipart/form-data; boundary=x"},
        {"Content-Type": "application/json", "Content-Encoding": "gzip"},
    ],
)
def test_wrong_content_type(client: FlaskClient, headers: dict[str, str]) -> None:
    """CS-2: 415."""
    answer = client.post("/api/items", data=b'{"name": "x", "price_cents": 1}', headers=headers)
    assert answer.status_code == 415


def test_content_type_with_charset(client: FlaskClient) -> None:
    """CS-2: parameters of the content type do not matter."""
    answer = client.post(
        "/api/items",
        data=b'{"name": "x", "price_cents": 1}',
        content_type="application/json; charset=utf-8",
    )
    assert answer.status_code == 201


def test_body_too_large(client: FlaskClient) -> None:
    """CS-2: 413 above 1 MiB; just below it is read."""
    assert create(client, description="x" * 1024 * 1024).status_code == 413
    assert create(client, description="x" * (1024 * 1024 - 200)).status_code == 422


@pytest.mark.parametrize(
    "id_",
    ["0", "-1", "abc", "1.0", "1_0", "+1", "%20" + "1", "٣", str(2**63), "9" * 400, "1e3", "%00"],
)
def test_invalid_ids(client: FlaskClient, id_: str) -> None:
    """CS-2: 422 for what cannot be an id, however large."""
    for answer in (client.get(f"/api/items/{id_}"), client.delete(f"/api/items/{id_}")):
        assert answer.status_code == 422
        assert answer.get_json()["errors"][0]["location"] == ["path", "id"]


def test_largest_id(client: FlaskClient) -> None:
    """CS-2: 404 at the edge of bigint."""
    assert client.get(f"/api/items/{2**63 - 1}").status_code == 404


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=101",
        "limit=-1",
        "limit=x",
        "limit=",
        "limit=1.0",
        "limit=" + "9" * 400,
        "limit=1&limit=2",
        "cursor=",
        "cursor=x",
        "cursor=AAAAAAAAAAAA",
        "cursor=" + "A" * 5000,
        "cursor=%00",
        "cursor=é",
        "colour=blue",
    ],
)
def test_invalid_queries(client: FlaskClient, query: str) -> None:
    """CS-2: 422 that names the parameter."""
    answer = client.get(f"/api/items?{query}")
    assert answer.status_code == 422
    assert answer.get_json()["errors"][0]["location"] == ["query", query.partition("=")[0]]


def test_url_that_is_not_text(client: FlaskClient) -> None:
    """CS-2: 400 for invalid UTF-8 in path or query."""
    for part in ({"PATH_INFO": "/api/items/\xff"}, {"QUERY_STRING": "limit=%ff"}):
        answer = client.get("/api/items", environ_overrides=part)
        assert answer.status_code == 400
        assert answer.content_type == "application/problem+json"
