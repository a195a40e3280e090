"""FS-4: /console."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from flask.testing import FlaskClient

from compose_app.app import build_app
from compose_app.config import Settings
from compose_app.openapi import Api
from conftest import QUEUE, Backends

PASSWORD = "operator-password"
BASE = "https://localhost"


@pytest.fixture(scope="module")
def environ(backends: Backends, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    secret = tmp_path_factory.mktemp("operator") / "password"
    secret.write_text(PASSWORD)
    return {**backends.environ, "OPERATOR_PASSWORD_FILE": str(secret)}


@pytest.fixture(scope="module")
def console_app(environ: dict[str, str]) -> Api:
    return build_app(Settings.from_environ(environ))


class Browser:
    """Sends forms as a browser does: to where the page says, with what is hidden in it."""

    def __init__(self, app: Api) -> None:
        self.client: FlaskClient = app.test_client()

    def get(self, path: str, **options: Any) -> Any:
        return self.client.get(path, base_url=BASE, **options)

    def send(self, page: str, action: str, **values: Any) -> Any:
        shown = self.get(page).get_data(as_text=True)
        head = f'<form method="post" action="{action}">'
        form = re.search(rf"{re.escape(head)}.*?</form>", shown, re.DOTALL)
        assert form is not None, shown
        token = re.search(r'name="csrf_token" value="([^"]+)"', form[0])
        assert token is not None, form[0]
        return self.client.post(action, base_url=BASE, data={**values, "csrf_token": token[1]})

    def sign_in(self, password: str = PASSWORD) -> Any:
        return self.send("/console/login", "/console/login", password=password)

    @property
    def cookie(self) -> str:
        cookie = self.client.get_cookie("console", domain="localhost", path="/console")
        assert cookie is not None
        return cookie.value


@pytest.fixture
def browser(console_app: Api, clean: Backends) -> Browser:
    clean.queue_client().flushdb()
    return Browser(console_app)


@pytest.fixture
def operator(browser: Browser) -> Browser:
    answer = browser.sign_in()
    assert (answer.status_code, answer.headers["Location"]) == (303, "/console")
    return browser


def text(answer: Any) -> str:
    return str(answer.get_data(as_text=True))


def test_signing_in_and_out(browser: Browser) -> None:
    """FS-4: nothing is shown before, and nothing afterwards."""
    for path in ("/console", "/console/items", "/console/coupons", "/console/coupons/x"):
        answer = browser.get(path)
        assert (answer.status_code, answer.headers["Location"]) == (303, "/console/login")
    wrong = browser.sign_in("wrong")
    assert wrong.status_code == 403
    assert "not the operator" in text(wrong)
    before = browser.cookie
    assert browser.sign_in().status_code == 303
    assert browser.cookie != before, "whoever planted the id would be signed in, too"
    assert browser.get("/console", follow_redirects=True).request.path == "/console/items"
    kept = browser.cookie
    assert browser.send("/console/items", "/console/logout").status_code == 303
    assert browser.get("/console/items").status_code == 303
    browser.client.set_cookie("console", kept, domain="localhost", path="/console")
    assert browser.get("/console/items").status_code == 303, "the session outlives the sign-out"


def test_password_managers(browser: Browser) -> None:
    """FS-4: they are told whose password it is, so that they keep it and fill it in."""
    page = text(browser.get("/console/login"))
    fields = re.findall(r"<input name=\"([^\"]+)\"[^>]* autocomplete=\"([^\"]+)\"", page)
    assert fields == [("username", "username"), ("password", "current-password")]
    assert 'value="operator"' in page


def test_cookie(browser: Browser) -> None:
    """FS-4: no script reads it, no other site sends it, no API request carries it."""
    answer = browser.sign_in()
    flags = {part.strip() for part in answer.headers["Set-Cookie"].split(";")[1:]}
    assert {"Secure", "HttpOnly", "SameSite=Strict", "Path=/console"} <= flags
    assert answer.headers["Cache-Control"] == "no-store"
    assert "operator" not in browser.cookie


def test_api_has_no_sessions(operator: Browser, clean: Backends) -> None:
    """FS-4: a request to the API neither reads nor makes one."""
    kept = clean.queue_client().dbsize()
    fresh = operator.client.application.test_client()
    answer = fresh.get("/api/items", headers={"Cookie": f"console={operator.cookie}"})
    assert answer.status_code == 200
    assert "Set-Cookie" not in answer.headers
    assert "Vary" not in answer.headers
    assert clean.queue_client().dbsize() == kept
    assert fresh.post("/api/coupons", json={"name": "x", "amount": 1}).status_code == 201


@pytest.mark.parametrize("token", [None, "", "wrong"])
def test_forms_from_elsewhere(operator: Browser, token: str | None) -> None:
    """FS-4: a form without this session's token does nothing."""
    data = {"name": "x", "amount": "1", **({} if token is None else {"csrf_token": token})}
    for path in ("/console/coupons", "/console/logout", "/console/login", "/console/items"):
        answer = operator.client.post(path, base_url=BASE, data=data)
        assert answer.status_code == 400, path
        assert "CSRF" in text(answer)
    assert "None." in text(operator.get("/console/coupons"))


def test_token_of_another_session(operator: Browser, console_app: Api) -> None:
    """FS-4: nor one with the token of somebody else's session."""
    other = Browser(console_app)
    found = re.search(r'name="csrf_token" value="([^"]+)"', text(other.get("/console/login")))
    assert found is not None
    data = {"name": "x", "amount": "1", "csrf_token": found[1]}
    assert operator.client.post("/console/coupons", base_url=BASE, data=data).status_code == 400


def test_items(operator: Browser) -> None:
    """FS-4: created, shown as text, refused with what is wrong, deleted."""
    values = {"name": "<b>Kettle</b>", "description": "1.7 l", "price": "34,90", "quantity": "12"}
    assert operator.send("/console/items", "/console/items", **values).status_code == 303
    page = text(operator.get("/console/items"))
    assert "&lt;b&gt;Kettle&lt;/b&gt; is there." in page
    assert "<b>" not in page
    assert "34.90" in page
    assert "is there." not in text(operator.get("/console/items")), "said once"

    again = operator.send("/console/items", "/console/items", **values)
    assert again.status_code == 409
    assert "name: is taken" in text(again)
    assert 'value="34,90"' in text(again), "what was typed is kept"
    for change, fault in (
        ({"price": "dear"}, "price_cents"),
        ({"price": "1.999"}, "price_cents"),
        ({"price": "-1"}, "price_cents"),
        ({"price": "30000000"}, "price_cents"),
        ({"price": "NaN"}, "price_cents"),
        ({"price": "1e99"}, "price_cents"),
        ({"quantity": "-1"}, "quantity"),
        ({"name": ""}, "name"),
        ({"description": "x" * 2001}, "description"),
    ):
        wrong = operator.send("/console/items", "/console/items", **{**values, **change})
        assert wrong.status_code == 422, change
        assert f"{fault}: " in text(wrong)

    found = re.search(r"/console/items/(\d+)/delete", page)
    assert found is not None
    assert operator.send("/console/items", found[0]).status_code == 303
    assert "None." in text(operator.get("/console/items"))


def test_coupons(operator: Browser) -> None:
    """FS-4: created and claimed; who has claimed is shown; what the API refuses is said."""
    name = "Frühling 50%?"
    path = "/console/coupons"
    assert operator.send(path, path, name=name, amount="2").status_code == 303
    for user in ("ada", "<i>bob</i>"):
        claimed = operator.send(path, f"{path}/claim", coupon_name=name, user_id=user)
        assert claimed.status_code == 303
    page = text(operator.get(path))
    link = f"{path}/{quote(name)}"
    assert f'href="{link}"' in page
    shown = text(operator.get(link))
    assert "0 of 2 left." in shown
    assert "&lt;i&gt;bob&lt;/i&gt;" in shown
    for user, fault in (("ada", "has claimed this coupon already"), ("eve", "All pieces")):
        refused = operator.send(path, f"{path}/claim", coupon_name=name, user_id=user)
        assert refused.status_code == 409
        assert fault in text(refused)
    assert operator.send(path, path, name="x", amount="many").status_code == 422
    assert operator.get(f"{path}/nothing").status_code == 404


def test_pages(operator: Browser, clean: Backends) -> None:
    """FS-4: each entry is on exactly one page, by links that need no script."""
    with clean.connect() as connection:
        connection.execute(
            "INSERT INTO coupons (name, amount, remaining_amount)"
            " SELECT format('coupon %s', lpad(n::text, 2, '0')), 5, 5 FROM generate_series(1, 45) n"
        )
    url, seen = "/console/coupons", []
    while url:
        page = text(operator.get(url))
        seen += re.findall(r">(coupon \d+)</a>", page)
        following = re.search(r'<a href="([^"]+)" rel="next">', page)
        url = following[1].replace("&amp;", "&") if following else ""
    assert seen == [f"coupon {number:02}" for number in range(1, 46)]
    assert operator.get("/console/coupons?cursor=nonsense").status_code == 422


def test_every_page_brings_what_it_shows(operator: Browser) -> None:
    """FS-4: no inline script or style, nothing from elsewhere: fit for default-src 'self'."""
    operator.send("/console/coupons", "/console/coupons", name="x", amount="1")
    for path in ("/console/items", "/console/coupons", "/console/coupons/x", "/console/nothing"):
        page = text(operator.get(path))
        assert not re.search(r"<script|<style| style=| on\w+=|https?://", page), path
    assert operator.get("/console/static/console.css").status_code == 200
    # Without a link browsers ask for /favicon.ico, which there is not.
    icon = re.search(r'<link rel="icon" href="([^"]+)"', text(operator.get("/console/items")))
    assert icon is not None
    answer = operator.get(icon[1])
    assert (answer.status_code, answer.mimetype) == (200, "image/svg+xml")


def test_guessing(browser: Browser) -> None:
    """FS-4: ten wrong passwords a minute are looked at, and no more; others are not locked out."""
    while time.time() % 60 > 50:
        time.sleep(1)
    for _ in range(10):
        assert browser.sign_in("wrong").status_code == 403
    for password in ("wrong", PASSWORD):
        answer = browser.sign_in(password)
        assert (answer.status_code, answer.headers["Retry-After"]) == (429, "60")
    browser.client.environ_base["HTTP_X_REAL_IP"] = "192.0.2.7"
    assert browser.sign_in().status_code == 303


def test_another_password_ends_sessions(
    operator: Browser, environ: dict[str, str], tmp_path: Path
) -> None:
    """FS-8, FS-4: whoever signed in with the one before has to sign in again."""
    (tmp_path / "password").write_text("another")
    changed = {**environ, "OPERATOR_PASSWORD_FILE": str(tmp_path / "password")}
    later = Browser(build_app(Settings.from_environ(changed)))
    later.client.set_cookie("console", operator.cookie, domain="localhost", path="/console")
    assert later.get("/console/items").headers["Location"] == "/console/login"
    assert operator.get("/console/items").status_code == 200


def test_sessions_end(operator: Browser, clean: Backends) -> None:
    """FS-4: eight hours after the last use; a form that nobody filled in after ten minutes."""
    queue = clean.queue_client()
    (key,) = (key for key in queue.scan_iter("console:session:*") if operator.cookie in str(key))
    queue.expire(key, 100)
    operator.get("/console/items")
    assert 8 * 3600 - 60 < queue.ttl(key) <= 8 * 3600
    other = Browser(operator.client.application)  # type: ignore[arg-type]
    other.get("/console/login")
    (key,) = (key for key in queue.scan_iter("console:session:*") if other.cookie in str(key))
    assert 500 < queue.ttl(key) <= 600


@pytest.mark.parametrize("kept", [b"nonsense", b"[1]", b"\x80\x04N.", b'{"operator": "me"}'])
def test_a_session_that_is_none(operator: Browser, clean: Backends, kept: bytes) -> None:
    """FS-4: whatever lies in its place lets nobody in."""
    clean.queue_client().set(f"console:session:{operator.cookie}", kept)
    assert operator.get("/console/items").headers["Location"] == "/console/login"


@pytest.fixture
def frozen(clean: Backends) -> Iterator[Callable[[str], None]]:
    paused: list[Any] = []

    def pause(name: str) -> None:
        container = getattr(clean, name)
        container.pause()
        paused.append(container)

    yield pause
    for container in paused:
        container.unpause()
    clean.wait()


@pytest.mark.parametrize("name", ["queue", "postgres"])
def test_outages(
    operator: Browser, frozen: Callable[[str], None], clean: Backends, name: str
) -> None:
    """FS-4, CS-2: a page with 503 and Retry-After within 3 s; afterwards still signed in."""
    frozen(name)
    for _ in range(2):
        began = time.monotonic()
        answer = operator.get("/console/items")
        assert time.monotonic() - began < 3
        assert (answer.status_code, "Retry-After" in answer.headers) == (503, True)
        assert "does not answer" in text(answer)
    getattr(clean, name).unpause()
    try:
        time.sleep(1.1)
        assert operator.get("/console/items").status_code == 200
    finally:
        getattr(clean, name).pause()


def test_kept_by_redis_that_evicts_nothing(operator: Browser, clean: Backends) -> None:
    """UT-6: not in the cache."""
    assert any(operator.cookie in str(key) for key in clean.queue_client().scan_iter())
    assert not any(operator.cookie in str(key) for key in clean.client().scan_iter())
    assert QUEUE not in str(operator.get("/console/items").headers)


def test_usage_as_a_chart(operator: Browser, clean: Backends) -> None:
    """UT-3, FS-4: a bar a bucket, and the same as a table; the API's words where it refuses."""
    now = datetime.now(UTC)
    with clean.connect() as connection:
        for hours, quantity in ((0, 10), (1, 5), (47, 1), (48, 99)):
            bucket = now.replace(minute=0, second=0, microsecond=0) - timedelta(hours=hours)
            connection.execute(
                "INSERT INTO usage_hours (tenant, metric, bucket, quantity, events)"
                " VALUES ('acme', '<calls>', %s, %s, 1)",
                (bucket, quantity),
            )
    page = text(operator.get("/console/usage?tenant=acme&bucket=hour"))
    assert "&lt;calls&gt;</b>, 16 in all, 10 at most" in page
    bars = re.findall(r'<rect x="([\d.]+)" y="([\d.]+)" width="12.0" height="([\d.]+)">', page)
    assert [bar[1:] for bar in bars] == [("108.0", "12.0"), ("60.0", "60.0"), ("0.0", "120.0")]
    assert [float(bar[0]) for bar in bars] == [1.5, 691.5, 706.5]
    assert page.count("<time>") == 3
    assert "Nothing was used." in text(operator.get("/console/usage?tenant=acme&bucket=minute"))
    assert "<svg" not in text(operator.get("/console/usage"))
    assert "<svg" not in text(operator.get("/console/usage?tenant=acme&bucket=year"))
    refused = operator.get(f"/console/usage?tenant={'x' * 300}")
    assert refused.status_code == 422
    assert "tenant: " in text(refused)


def test_birthdays(operator: Browser, clean: Backends) -> None:
    """BM-1, BM-3, FS-4: a user, what is coming, and another attempt at what was given up."""
    user = {
        "first_name": "Ada",
        "last_name": "<b>",
        "birthday": "1990-05-17",
        "time_zone": "Europe/London",
        "email": "ada@example.org",
    }
    page, action = "/console/birthdays", "/console/birthdays"
    assert operator.send(page, action, **user).status_code == 303
    assert "Ada is there; the next message is due at" in text(operator.get(page))
    refused = operator.send(page, action, **{**user, "time_zone": "Mars"})
    assert refused.status_code == 422
    assert "time_zone: " in text(refused)
    assert 'value="Mars"' in text(refused)
    assert "None is planned yet." in text(operator.get(page))
    assert "Given up" not in text(operator.get(page))
    with clean.connect() as connection:
        connection.execute(
            "INSERT INTO birthday_messages (user_id, year, due_at, next_at, state, attempts, error)"
            " SELECT id, year, now(), now(), state, 8, 'answered <503>' FROM users,"
            " (VALUES (2020, 'dead'), (2021, 'planned'), (2022, 'queued')) AS x (year, state)"
        )
    listed = text(operator.get(page))
    assert "answered &lt;503&gt;" in listed
    assert "Ada &lt;b&gt;" in listed
    replay = re.search(r'action="(/console/birthdays/\d+/replay)"', listed)
    assert replay is not None
    queues = text(operator.get("/console/queues"))
    counts = re.findall(r'<th scope="row">([^<]+)</th><td class="number">(\d+)</td>', queues)
    assert [int(count) for _, count in counts] == [0, 0, 1, 1, 1]
    assert operator.send(page, replay[1]).status_code == 303
    assert "will be tried once more" in text(operator.get(page))
    with clean.connect() as connection:
        row = connection.execute(
            "SELECT state, attempts FROM birthday_messages WHERE year = 2020"
        ).fetchone()
    assert row == ("planned", 0)
    token = {"csrf_token": _token(text(operator.get(page)))}
    for path in (replay[1], "/console/birthdays/999/replay", f"/console/birthdays/{2**70}/replay"):
        gone = operator.client.post(path, base_url=BASE, data=token)
        assert gone.status_code == 404
        assert "was not given up, or is gone" in text(gone)


def _token(page: str) -> str:
    found = re.search(r'name="csrf_token" value="([^"]+)"', page)
    assert found is not None
    return found[1]
