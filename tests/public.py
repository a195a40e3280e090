"""What a stack owes at its public address, wherever it runs: suites that deploy one inherit it.

A suite provides the fixture `stack`. The tests leave the stack as they found it.
"""

from __future__ import annotations

import concurrent.futures
import json
import re
import ssl
import uuid
from typing import TYPE_CHECKING

import pytest

from tests.harness import wait_for

if TYPE_CHECKING:
    import requests

    from tests.harness import Site, Stack

HEADERS = {
    "Strict-Transport-Security": r"max-age=\d{7,}",
    "X-Content-Type-Options": r"nosniff",
    "X-Frame-Options": r"DENY|SAMEORIGIN",
    "Content-Security-Policy": r"default-src 'self'.*",
}

# For a key of either kind, so that it is the server's choice of suites that decides.
MODERN = "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256"
WEAK = {
    "cbc": "ECDHE-ECDSA-AES128-SHA256:ECDHE-RSA-AES128-SHA256:"
    "ECDHE-ECDSA-AES256-SHA:ECDHE-RSA-AES256-SHA",
    "no-forward-secrecy": "AES128-GCM-SHA256:AES256-GCM-SHA384",
}


def assert_headers(answer: requests.Response, *, secure: bool = True) -> None:
    """CS-9: on every status, once each."""
    for name, pattern in HEADERS.items():
        # RFC 6797: HSTS must not be sent over plain HTTP.
        if name == "Strict-Transport-Security" and not secure:
            assert name not in answer.headers
            continue
        value = answer.headers.get(name, "")
        assert re.fullmatch(pattern, value), f"{answer.status_code} {name}: {value!r}"


def flood(site: Site, count: int = 80) -> list[requests.Response]:
    """Many requests at once, more than the burst allows."""
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        return list(pool.map(lambda _: site.get("/api/items?limit=1"), range(count)))


class PublicAddress:
    """CS-2, CS-8 and CS-9, seen from outside."""

    def test_health(self, stack: Stack) -> None:
        """CS-1, CS-2."""
        answer = stack.site.get("/health")
        assert answer.status_code == 200
        assert answer.json() == {"status": "ok", "database": "ok", "redis": "ok"}

    @pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
    def test_modern_tls_is_spoken(self, stack: Stack, version: ssl.TLSVersion) -> None:
        """CS-9."""
        assert stack.site.handshake(version) == version.name.replace("_", ".")

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    @pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
    def test_old_tls_is_refused(self, stack: Stack, version: ssl.TLSVersion) -> None:
        """CS-9: by the server's alert, not for want of a common cipher on the client's side."""
        with pytest.raises(ssl.SSLError, match="alert protocol version"):
            stack.site.handshake(version)

    @pytest.mark.parametrize("suites", WEAK.values(), ids=WEAK)
    def test_weak_suites_are_refused(self, stack: Stack, suites: str) -> None:
        """CS-9: although the version is one that is spoken."""
        assert stack.site.handshake(ssl.TLSVersion.TLSv1_2, MODERN) == "TLSv1.2"
        with pytest.raises(ssl.SSLError, match="alert handshake failure"):
            stack.site.handshake(ssl.TLSVersion.TLSv1_2, suites)

    def test_plain_http_redirects(self, stack: Stack) -> None:
        """CS-9: to HTTPS, to a name of ours, whatever Host says."""
        port = "" if stack.site.https_port == 443 else f":{stack.site.https_port}"
        for host in (stack.site.name, "evil.example"):
            answer = stack.site.plain("/api/items?limit=1", Host=host)
            assert answer.status_code == 301
            assert (
                answer.headers["Location"] == f"https://{stack.site.name}{port}/api/items?limit=1"
            )
            assert_headers(answer, secure=False)

    def test_items(self, stack: Stack) -> None:
        """CS-2: 201, 200, 409, 204, 404; with CS-9's headers on each."""
        site = stack.site
        body = {"name": f"item {uuid.uuid4()}", "price_cents": 150}
        created = site.patiently("POST", "/api/items", json=body)
        assert created.status_code == 201
        path = created.headers["Location"]
        assert site.patiently("GET", path).json()["name"] == body["name"]
        again = site.patiently("POST", "/api/items", json=body)
        assert again.status_code == 409
        deleted = site.patiently("DELETE", path)
        assert deleted.status_code == 204
        gone = site.patiently("GET", path)
        assert gone.status_code == 404
        for answer in (created, again, deleted, gone):
            assert_headers(answer)

    def test_cache(self, stack: Stack) -> None:
        """CS-2."""
        path = f"/api/cache/{uuid.uuid4().hex}"
        put = stack.site.patiently("PUT", path, json={"value": {"a": 1}, "ttl": 60})
        assert put.status_code == 200
        found = stack.site.patiently("GET", path).json()
        assert found["value"] == {"a": 1}
        assert 0 < found["ttl"] <= 60

    @pytest.mark.parametrize(
        ("method", "path", "options", "status"),
        [
            ("GET", "/no-such-page", {}, 404),
            ("GET", "/metrics", {}, 404),
            ("DELETE", "/health", {}, 405),
            (
                "POST",
                "/api/items",
                {"data": "{", "headers": {"Content-Type": "application/json"}},
                400,
            ),
            ("POST", "/api/items", {"data": "a=1"}, 415),
            ("POST", "/api/items", {"json": {"name": ""}}, 422),
            ("POST", "/api/items", {"data": b"x" * (2 << 20)}, 413),
            ("GET", "/" + "a" * 20000, {}, 414),
        ],
        ids=lambda value: str(value)[:24] if isinstance(value, str | int) else "",
    )
    def test_errors(
        self, stack: Stack, method: str, path: str, options: dict[str, object], status: int
    ) -> None:
        """CS-2, CS-9: a problem document with the headers, whoever answers."""
        answer = stack.site.patiently(method, path, **options)
        assert answer.status_code == status
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert answer.json()["status"] == status
        assert_headers(answer)

    @pytest.mark.parametrize(
        ("request_line", "status"), [(b"BOGUS", 400), (b"GET / HTTP/1.1\r\nno colon", 400)]
    )
    def test_what_is_no_http(self, stack: Stack, request_line: bytes, status: int) -> None:
        """CS-2, CS-9: never 500 for bad input, and the headers even then."""
        reply = stack.site.raw(request_line + b"\r\n\r\n")
        head, _, body = reply.partition(b"\r\n\r\n")
        assert head.startswith(f"HTTP/1.1 {status} ".encode())
        assert b"X-Frame-Options: DENY" in head
        assert json.loads(body)["status"] == status

    def test_rate_limit(self, stack: Stack) -> None:
        """CS-8: 429 with Retry-After, and the headers; CS-2."""
        answers = flood(stack.site)
        statuses = {answer.status_code for answer in answers}
        assert statuses == {200, 429}
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert int(refused.headers["Retry-After"]) >= 1
        assert refused.headers["Content-Type"] == "application/problem+json"
        assert_headers(refused)

    def test_health_is_not_rate_limited(self, stack: Stack) -> None:
        """CS-8: or a busy client would make a load balancer's probe fail."""
        flood(stack.site, 60)
        assert stack.site.get("/health").status_code == 200

    def test_gzip(self, stack: Stack) -> None:
        """CS-8: for JSON and text."""
        answer = stack.site.patiently("GET", "/openapi.json", headers={"Accept-Encoding": "gzip"})
        assert answer.headers["Content-Encoding"] == "gzip"
        assert answer.json()["openapi"].startswith("3.1")

    def test_static_files(self, stack: Stack) -> None:
        """CS-8: served by nginx itself."""
        answer = stack.site.patiently("GET", "/static/robots.txt")
        assert answer.status_code == 200
        assert_headers(answer)

    def test_request_id_travels(self, stack: Stack) -> None:
        """CS-8: from the client through nginx to the application's log, and back."""
        sent = uuid.uuid4().hex
        answer = stack.site.patiently(
            "DELETE", "/api/items/2147483647", headers={"X-Request-ID": sent}
        )
        assert answer.headers["X-Request-ID"] == sent
        logs = "".join(
            stack.engine.run("docker", "logs", "--since=1m", item["Id"])
            for item in stack.services()[stack.api_slot()]
        )
        line = next(json.loads(line) for line in logs.splitlines() if sent in line)
        assert line["request_id"] == sent
        made = stack.site.patiently("GET", "/health").headers["X-Request-ID"]
        assert re.fullmatch(r"[0-9a-f]{32}", made)

    def test_client_address_cannot_be_forged(self, stack: Stack) -> None:
        """CS-8: nginx writes X-Real-IP and X-Forwarded-For itself, or the limit could be evaded."""
        sent = uuid.uuid4().hex
        headers = {"X-Request-ID": sent, "X-Forwarded-For": "192.0.2.1", "X-Real-IP": "192.0.2.1"}
        stack.site.patiently("GET", "/api/items?limit=1", headers=headers)
        nginx = stack.one("nginx")["Id"]

        def logged() -> str:
            lines = stack.engine.run("docker", "logs", "--since=1m", nginx).splitlines()
            return next((line for line in lines if sent in line), "")

        assert json.loads(wait_for("the request in nginx' log", logged, 5))["client"] != "192.0.2.1"
