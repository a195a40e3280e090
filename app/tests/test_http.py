"""CS-2, CS-3: what all endpoints have in common."""

from __future__ import annotations

from contextlib import suppress
from html.parser import HTMLParser
from typing import Any

import pytest
import schemathesis
from flask.testing import FlaskClient
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from compose_app import errors
from compose_app.openapi import Api
from conftest import Backends


def test_health(client: FlaskClient) -> None:
    """CS-2: readiness names both dependencies; liveness needs neither."""
    health = client.get("/health")
    assert health.status_code == 200
    assert health.get_json() == {"status": "ok", "database": "ok", "redis": "ok"}
    assert client.get("/health/live").get_json() == {"status": "ok"}


def test_unknown_route(client: FlaskClient) -> None:
    """CS-2: 404 as a problem document with all its members."""
    answer = client.get("/nothing", headers={"X-Request-ID": "abc-123"})
    assert answer.status_code == 404
    assert answer.content_type == "application/problem+json"
    document = answer.get_json()
    assert document.keys() == {"type", "title", "status", "detail", "instance", "request_id"}
    assert document["status"] == 404
    assert document["instance"] == "/nothing"
    assert document["request_id"] == "abc-123"


def test_wrong_method(client: FlaskClient) -> None:
    """CS-2: 405 with Allow, for unknown methods too."""
    for method in ("PUT", "PATCH", "BREW"):
        answer = client.open("/api/items", method=method)
        assert answer.status_code == 405
        assert answer.content_type == "application/problem+json"
        assert {"GET", "POST"} <= {name.strip() for name in answer.headers["Allow"].split(",")}


def test_a_bug_is_a_problem_too(app: Api, clean: Backends) -> None:
    """CS-2: 500 as a problem document that tells nothing of the inside."""
    with clean.connect() as connection:
        connection.execute("ALTER TABLE items RENAME TO elsewhere")
        try:
            answer = app.test_client().get("/api/items/1")
        finally:
            connection.execute("ALTER TABLE elsewhere RENAME TO items")
    assert answer.status_code == 500
    assert answer.content_type == "application/problem+json"
    assert "items" not in answer.get_json()["detail"]
    assert app.test_client().get("/api/items/1").status_code == 404


@pytest.mark.parametrize("given", ["abc", "A-b_c.1:2/3+4=5@6", "x" * 128])
def test_request_id_is_kept(client: FlaskClient, given: str) -> None:
    """CS-2: a sane request id travels through."""
    assert (
        client.get("/health/live", headers={"X-Request-ID": given}).headers["X-Request-ID"] == given
    )


@pytest.mark.parametrize("given", ["", "x" * 129, "a b", 'a"b', "a;b", "é", "a,b", "<script>"])
def test_request_id_is_made(client: FlaskClient, given: str) -> None:
    """CS-2: any other is replaced."""
    made = client.get("/health/live", headers={"X-Request-ID": given}).headers["X-Request-ID"]
    assert made != given
    assert len(made) == 32


def test_openapi_document(client: FlaskClient) -> None:
    """CS-2: OpenAPI 3.1 that names every operation and every status."""
    document = client.get("/openapi.json").get_json()
    assert document["openapi"] == "3.1.0"
    operations = {
        (method, path): set(operation["responses"])
        for path, item in document["paths"].items()
        for method, operation in item.items()
    }
    assert operations == {
        ("get", "/health"): {"200", "400", "429", "503"},
        ("get", "/health/live"): {"200", "400", "429"},
        ("get", "/api/items"): {"200", "400", "422", "429", "503"},
        ("post", "/api/items"): {"201", "400", "409", "413", "415", "422", "429", "503"},
        ("get", "/api/items/{id}"): {"200", "400", "404", "422", "429", "503"},
        ("delete", "/api/items/{id}"): {"204", "400", "404", "422", "429", "503"},
        ("post", "/api/coupons"): {"201", "400", "409", "413", "415", "422", "429", "503"},
        ("get", "/api/coupons"): {"200", "400", "422", "429", "503"},
        ("get", "/api/coupons/{name}"): {"200", "400", "404", "422", "429", "503"},
        ("post", "/api/coupons/claim"): {
            *("201", "400", "404", "409", "413", "415", "422", "429", "503"),
        },
        ("post", "/api/coupons/claim/batch"): {
            *("200", "400", "404", "413", "415", "422", "429", "503"),
        },
        ("post", "/api/user"): {"201", "400", "409", "413", "415", "422", "429", "503"},
        ("get", "/api/user/{id}"): {"200", "400", "404", "422", "429", "503"},
        ("put", "/api/user/{id}"): {
            *("200", "400", "404", "409", "413", "415", "422", "429", "503"),
        },
        ("delete", "/api/user/{id}"): {"204", "400", "404", "422", "429", "503"},
        ("post", "/api/usage/events"): {"202", "400", "409", "413", "415", "422", "429", "503"},
        ("get", "/api/usage"): {"200", "400", "422", "429", "503"},
        ("get", "/api/cache/{key}"): {"200", "400", "404", "422", "429", "503"},
        ("put", "/api/cache/{key}"): {"200", "400", "413", "415", "422", "429", "503"},
    }
    assert {"Item", "ItemIn", "ItemPage", "CacheEntry", "CacheIn", "Problem"} <= set(
        document["components"]["schemas"]
    )
    problem = document["paths"]["/api/items"]["post"]["responses"]["422"]["content"]
    assert problem == {
        "application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}
    }


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.targets: set[str] = set()
        self.inline: list[str] = []
        self.assets: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id":
                self.ids.add(str(value))
            if name == "style" or name.startswith("on"):
                self.inline.append(f"{tag} {name}")
            if name == "href" and tag == "a" and str(value).startswith("#"):
                self.targets.add(str(value)[1:])
            if name == "src" or (name == "href" and tag == "link"):
                self.assets.append(str(value))
        if tag in ("style", "script"):
            self.inline.append(tag)


def test_docs_page(client: FlaskClient) -> None:
    """CS-2: shows under default-src 'self': nothing inline, every asset our own and served."""
    answer = client.get("/docs")
    assert answer.status_code == 200
    page = _Page()
    page.feed(answer.get_data(as_text=True))
    assert page.inline == []
    assert page.targets <= page.ids
    assert page.assets
    for asset in page.assets:
        assert asset.startswith("/docs/")
        assert client.get(asset).status_code == 200
    assert {f"problem-{slug}" for slug in errors.KINDS} <= page.ids
    assert "getItem" in page.ids


CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
]


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_no_request_breaks_the_contract(app: Api, clean: Backends, mode: GenerationMode) -> None:
    """CS-2: no 5xx, and every answer is as the document says, for good requests and bad."""
    schema = schemathesis.openapi.from_wsgi("/openapi.json", app)
    tried = 0
    for result in schema.get_all_operations():
        assert isinstance(result, Ok), result
        operation = result.ok()

        @settings(
            max_examples=50,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def answers_as_documented(case: schemathesis.Case[Any]) -> None:
            nonlocal tried
            tried += 1
            case.call_and_validate(checks=CHECKS)

        # An operation without parameters knows no bad request.
        with suppress(Unsatisfiable):
            answers_as_documented()
    assert tried > 100
