"""FS-4: the console, as an operator's browser shows it: Chromium, with its scripts switched off."""

from __future__ import annotations

import concurrent.futures
import datetime
import uuid
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
import requests

from tests.harness import wait_for

from .browser import DESKTOP, PATIENCE, PHONE, Browser, browser
from .test_2_birthdays import PSQL, celebrate, mailbox, messages
from .test_2_usage import counted, events, send

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness import Stack

pytestmark = pytest.mark.timeout(300, func_only=True)

ICON = "/docs/static/icon.svg"
PAGES = ("items", "coupons", "usage", "birthdays", "queues")


@pytest.fixture(scope="module")
def chromium(anything: Stack) -> Iterator[Browser]:
    with browser(anything.site) as found:
        found.resize(DESKTOP)
        yield found


@pytest.fixture
def password(stack: Stack) -> str:
    return stack.engine.run("cat", f"{stack.directory}/secrets/operator_password").strip()


@pytest.fixture
def operator(chromium: Browser, password: str) -> Browser:
    """The browser, signed in."""
    chromium.open("/console")
    if chromium.path == "/console/login":
        chromium.send("/console/login", password=password)
    assert chromium.path == "/console/items"
    return chromium


def test_scripts_are_off(operator: Browser) -> None:
    """FS-4: what the other tests see works without scripts."""
    page = "<h1>none</h1><script>document.querySelector('h1').textContent = 'some'</script>"
    operator.visit(f"data:text/html,{quote(page)}")
    assert operator.title == "none"


def test_signing_in_and_out(chromium: Browser, stack: Stack, password: str) -> None:
    """FS-4: nothing is shown without the password, nor after signing out."""
    chromium.forget()
    for page in PAGES:
        assert stack.site.patiently("GET", f"/console/{page}").status_code == 303
        chromium.open(f"/console/{page}")
        assert (chromium.path, chromium.title) == ("/console/login", "Sign in")
    chromium.send("/console/login", password="wrong")
    assert "This is not the operator's password." in chromium.text
    assert chromium.answers[-2:].count(("/console/login", 403)) == 1
    chromium.send("/console/login", password=password)
    assert chromium.path == "/console/items"
    cookie = chromium.cookie("console")
    assert cookie is not None
    assert (cookie["secure"], cookie["httpOnly"], cookie["sameSite"]) == (True, True, "Strict")
    chromium.send("/console/logout")
    assert chromium.path == "/console/login"
    chromium.open("/console/items")
    assert chromium.path == "/console/login"


def test_password_managers(chromium: Browser, stack: Stack) -> None:
    """FS-4: the form says whose password it is, which nobody can change."""
    chromium.open("/console/login")
    user = chromium.find('input[autocomplete="username"]')
    assert (user.get_attribute("value"), user.get_attribute("readonly")) == ("operator", "true")
    assert chromium.find('input[autocomplete="current-password"]').is_displayed()


def test_items(operator: Browser) -> None:
    """FS-4, CS-2: added, refused with what was typed kept, deleted."""
    name = f"<i>Kettle</i> {uuid.uuid4().hex}"
    values = {"name": name, "description": "1.7 l", "price": "34.90", "quantity": "12"}
    operator.open("/console/items")
    operator.send("/console/items", **values)
    assert f"{name} is there." in operator.text

    operator.send("/console/items", **values)
    assert "name: is taken" in operator.text
    kept = {field: operator.find(f'input[name="{field}"]') for field in values}
    assert {field: found.get_attribute("value") for field, found in kept.items()} == values

    shown = row(operator, "/console/items", name)
    assert shown[2:5] == ["1.7 l", "34.90", "12"]
    operator.click(operator.find(f'button[aria-label="Delete {name}"]'))
    assert f"Item {shown[0]} is gone." in operator.text
    assert row(operator, "/console/items", name) == []


def row(operator: Browser, path: str, name: str) -> list[str]:
    """A row of a list, on whichever of its pages that is; empty if it is on none."""
    operator.open(path)
    while True:
        found = [cells for cells in operator.rows() if name in cells]
        if found:
            return found[0]
        more = operator.links("More")
        if not more:
            return []
        operator.click(more[0])


def test_coupons(operator: Browser, stack: Stack) -> None:
    """CO-2, CO-3, FS-4: created and claimed; never more than there are, whoever else claims."""
    name = f"Frühling 50% {uuid.uuid4().hex}"
    path = "/console/coupons"
    operator.open(path)
    operator.send(path, name=name, amount="5")
    assert f"{name} is there." in operator.text
    operator.send(f"{path}/claim", coupon_name=name, user_id="ada")
    assert f"ada has claimed {name}." in operator.text
    assert row(operator, path, name)[1:3] == ["4", "5"]
    operator.send(f"{path}/claim", coupon_name=name, user_id="ada")
    assert "has claimed this coupon already" in operator.text

    def claim(user: int) -> int:
        body = {"user_id": f"user {user}", "coupon_name": name}
        return stack.site.patiently("POST", "/api/coupons/claim", json=body).status_code

    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        answers = sorted(pool.map(claim, range(12)))
    assert answers == [201] * 4 + [409] * 8
    operator.send(f"{path}/claim", coupon_name=name, user_id="eve")
    assert "All pieces" in operator.text
    assert row(operator, path, name)[1:3] == ["0", "5"]
    operator.click(operator.links(name)[0])
    assert operator.title == name
    assert "0 of 5 left." in operator.text
    users = {cells[0] for cells in operator.rows()}
    assert len(users) == 5
    assert "ada" in users
    assert "eve" not in users


def test_usage(operator: Browser, stack: Stack) -> None:
    """UT-3, UT-4, FS-4: bars as high as what was used, and the same as a table."""
    tenant = f"t-{uuid.uuid4().hex}"
    now = datetime.datetime.now(datetime.UTC)
    quantities = {5: 40, 3: 10, 2: 25}
    used = [
        {
            **event,
            "quantity": quantity,
            "time": (now - datetime.timedelta(hours=ago)).isoformat(timespec="seconds"),
        }
        for event, (ago, quantity) in zip(events(tenant, 3), quantities.items(), strict=True)
    ]
    send(stack, used)
    wait_for("all are counted", lambda: counted(stack, tenant, "usage_hours") == 3, PATIENCE)
    operator.open("/console/usage")
    operator.send("/console/usage", tenant=tenant, bucket="hour")
    assert operator.path == f"/console/usage?tenant={tenant}&bucket=hour"
    caption = operator.find("figcaption").text
    assert caption == "requests, 75 in all, 40 at most by hour"
    # As drawn, whatever the page says: pixels from the lower edge of the chart.
    bars = operator.run(
        "const foot = document.querySelector('svg').getBoundingClientRect().bottom;"
        "return [...document.querySelectorAll('svg rect')].map(bar => {"
        "  const box = bar.getBoundingClientRect();"
        "  return {left: box.left, width: box.width, height: box.height, foot: foot - box.bottom};"
        "})"
    )
    assert len(bars) == 3
    highest = bars[0]["height"]
    assert highest > 20
    heights = [bar["height"] / highest for bar in bars]
    assert heights == pytest.approx([1, 10 / 40, 25 / 40], abs=0.02)
    # They stand on the same line, which is a border of 1 px.
    assert [bar["foot"] for bar in bars] == pytest.approx([1] * 3, abs=1)
    # Two hours, then one.
    steps = [bars[index + 1]["left"] - bars[index]["left"] for index in range(2)]
    assert steps[0] == pytest.approx(2 * steps[1], rel=0.05)
    operator.find("summary").click()
    assert [cells[1:] for cells in operator.rows()] == [["40", "1"], ["10", "1"], ["25", "1"]]
    operator.open("/console/usage")
    operator.send("/console/usage", tenant=f"{tenant}-nobody", bucket="day")
    assert "Nothing was used." in operator.text


def test_users_and_what_is_coming(operator: Browser) -> None:
    """BM-1, FS-4: who is entered here is told of, and refused with what is wrong."""
    tomorrow = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=1)
    path, email = "/console/birthdays", f"{uuid.uuid4().hex}@example.org"
    user = {
        "first_name": "Ada",
        "last_name": f"<b>{uuid.uuid4().hex}",
        "birthday": f"1980-{tomorrow:%m-%d}",
        "time_zone": "UTC",
        "email": email,
    }
    operator.open(path)
    operator.send(path, **{**user, "time_zone": "Mars/Olympus"})
    assert "time_zone: " in operator.text
    assert operator.find('input[name="last_name"]').get_attribute("value") == user["last_name"]
    operator.send(path, **user)
    assert "Ada is there; the next message is due at" in operator.text

    def coming() -> list[list[str]]:
        operator.open(path)
        return [cells for cells in operator.rows("Coming") if email in cells]

    # At once, or when the scheduler has planned that day.
    (planned,) = wait_for("the message is planned", coming, PATIENCE, 1)
    assert planned == [
        f"{tomorrow:%Y-%m-%d} 09:00",
        f"Ada {user['last_name']}",
        email,
        "UTC",
        "0",
        "",
    ]


def test_another_attempt(operator: Browser, stack: Stack) -> None:
    """BM-3, FS-4: what the email service refused is shown with the reason, and sent from here."""
    domain = f"{uuid.uuid4().hex}.example"
    behaviour = f"{mailbox(stack)}/behaviour"
    path = "/console/birthdays"

    def given_up() -> list[list[str]]:
        operator.open(path)
        return [cells for cells in operator.rows("Given up") if f"1@{domain}" in cells]

    try:
        requests.put(behaviour, json={"failure": 1, "status": 422}, timeout=10).raise_for_status()
        celebrate(stack, domain, 1)
        (dead,) = wait_for("the message is given up", given_up, PATIENCE, 1)
    finally:
        requests.put(behaviour, json={}, timeout=10).raise_for_status()
    assert dead[3:5] == ["1", "the email service answered 422"]
    assert messages(stack, domain) == []
    assert queued(operator)["Birthday messages given up"] >= 1
    number = stack.execute(
        "postgres",
        *PSQL,
        "SELECT birthday_messages.id FROM birthday_messages JOIN users ON users.id = user_id"
        f" WHERE email = '1@{domain}'",
    ).strip()
    operator.open(path)
    operator.click(operator.find(f'form[action="/console/birthdays/{number}/replay"] button'))
    assert "will be tried once more." in operator.text
    wait_for("the message", lambda: len(messages(stack, domain)) == 1, PATIENCE, 0.5)
    assert given_up() == []


def queued(operator: Browser) -> dict[str, int]:
    operator.open("/console/queues")
    return {name: int(count.replace(",", "")) for name, count in operator.rows()}


def test_queues(operator: Browser, stack: Stack) -> None:
    """BM-3, UT-1, FS-4: how much waits while nobody takes it, and that it no longer does."""
    waiting = "Birthday messages in the queue or with a worker"
    entries = "Usage events, in entries of up to a thousand"
    domain = f"{uuid.uuid4().hex}.example"
    wait_for("empty queues", lambda: queued(operator)[waiting] == 0, PATIENCE, 1)
    stopped = [stack.one(service)["Id"] for service in ("worker", "processor")]
    stack.engine.run("docker", "stop", *stopped)
    try:
        celebrate(stack, domain, 7)
        send(stack, events(f"t-{uuid.uuid4().hex}", 10))
        wait_for("seven wait", lambda: queued(operator)[waiting] == 7, PATIENCE, 1)
        assert queued(operator)[entries] >= 1
    finally:
        stack.engine.run("docker", "start", *stopped)
    stack.wait_healthy(PATIENCE)
    wait_for("none waits", lambda: queued(operator)[waiting] == 0, PATIENCE, 1)
    wait_for("all are counted", lambda: queued(operator)[entries] == 0, PATIENCE, 1)


def test_a_form_outlives_the_api(operator: Browser, stack: Stack) -> None:
    """FS-4: who was filling it in while every API container restarted sends it, still signed in."""
    name = f"Kettle {uuid.uuid4().hex}"
    operator.open("/console/items")
    operator.fill("/console/items", name=name, price="1.00", quantity="1")
    before = stack.lives(running=True)
    containers = [
        item["Id"]
        for service, items in stack.services().items()
        if service.startswith(("api-", "query-", "redis-queue"))
        for item in items
    ]
    assert len(containers) >= 3
    stack.engine.run("docker", "restart", *containers)
    assert len(set(before.values()) - set(stack.lives(running=True).values())) == len(containers)
    stack.wait_healthy(PATIENCE)
    operator.send("/console/items")
    assert f"{name} is there." in operator.text
    assert operator.path == "/console/items"


LONG = "W" * 60


@pytest.fixture
def full(operator: Browser, stack: Stack) -> list[str]:
    """Pages of the console with words in them that do not wrap of themselves."""
    word = f"{LONG}{uuid.uuid4().hex}"
    tenant = f"t-{uuid.uuid4().hex}"
    for path, body in (
        ("/api/items", {"name": word, "description": word, "price_cents": 1, "quantity": 1}),
        ("/api/coupons", {"name": word, "amount": 1}),
        ("/api/coupons/claim", {"user_id": word, "coupon_name": word}),
    ):
        assert stack.site.patiently("POST", path, json=body).status_code == 201
    send(stack, events(tenant, 1))
    wait_for("it is counted", lambda: counted(stack, tenant, "usage_hours") == 1, PATIENCE)
    celebrate(stack, f"{LONG}.{uuid.uuid4().hex}.example", 1)
    return [
        "/console/login",
        *(f"/console/{page}" for page in PAGES),
        f"/console/coupons/{word}",
        f"/console/usage?tenant={tenant}&bucket=hour",
        f"/console/coupons/{word}x",
    ]


def test_pages_keep_their_policy(operator: Browser, full: list[str]) -> None:
    """CS-9, FS-4: nothing a page brings is against its policy, and all it names is there."""
    operator.listen()
    operator.complaints.clear()
    for path in full:
        operator.open(path)
        assert operator.run("return document.styleSheets.length") == 1, path
    # Asked for when the page is there.
    wait_for("the icon", lambda: (ICON, 200) in operator.listen(), PATIENCE)
    assert operator.complaints == []
    assets = {answer for answer in operator.answers if not answer[0].startswith("/console")}
    assert {status for _, status in assets} <= {200, 304}, assets
    # And that it would be told of.
    operator.run("document.body.setAttribute('style', 'color: red')")
    operator.listen()
    assert operator.complaints
    assert "Content Security Policy" in operator.complaints[-1]


@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_no_page_is_wider_than_the_screen(
    operator: Browser, full: list[str], size: tuple[int, int]
) -> None:
    """FS-4: tables scroll in themselves, words break; nobody has to move the page sideways."""
    operator.resize(size)
    try:
        for path in full:
            operator.open(path)
            measured = operator.run(
                "const page = document.documentElement;"
                "return [page.clientWidth, Math.max(page.scrollWidth, document.body.scrollWidth)]"
            )
            assert measured == [size[0], size[0]], path
    finally:
        operator.resize(DESKTOP)
