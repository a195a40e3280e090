"""Every alert, brought about by a real fault and delivered to a real receiver in time.

All faults that do not hide one another are made at once, each in a thread of its own: most of the
half hour is waiting for what the rules demand to hold.
"""

from __future__ import annotations

import os
import threading
import time
import traceback
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

import pytest

from tests.figures import page, write
from tests.harness import ROOT
from tests.prove.faults import EXCEPTIONS, FAULTS, Expected, Fault
from tests.prove.rules import ALERTS
from tests.prove.world import World, deployed

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = ROOT / "docs" / "proofs" / "alerts.md"
CHOSEN = {name: FAULTS[name] for name in os.environ.get("FAULTS", "").split()} or FAULTS
EXPECTED = {item.key: item for fault in CHOSEN.values() for item in fault.expected}
PATIENCE = 90
"""Seconds after the limit in which an alert is still waited for, to know how late it was."""

pytestmark = pytest.mark.timeout(4500)


@dataclass(frozen=True)
class Outcome:
    """What became of one alert."""

    fault: Fault
    expected: Expected
    seconds: float | None
    error: str = ""

    @property
    def limit(self) -> float:
        return self.expected.shows + ALERTS[self.expected.key].limit

    @property
    def in_time(self) -> bool:
        return self.seconds is not None and self.seconds <= self.limit


def arrived(world: World, expected: Expected, since: float) -> float | None:
    """When the alert arrived that began to fire after the fault."""
    path = "/deadman" if expected.severity == "none" else "/alerts"
    wanted = {"alertname": expected.alert, "severity": expected.severity, **expected.labels}
    for alert in world.receiver.alerts(path):
        began = datetime.fromisoformat(alert["startsAt"]).timestamp()
        fresh = alert["at"] > since and (began > since or expected.severity == "none")
        matches = wanted.items() <= alert["labels"].items()
        if fresh and matches and alert["status"] == "firing":
            return float(alert["at"])
    return None


class Proof:
    """Makes the faults, and keeps what came of them."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.outcomes: dict[tuple[str, str], Outcome] = {}
        self._made = {name: threading.Event() for name in CHOSEN}
        self._over = {name: threading.Event() for name in CHOSEN}

    def run(self) -> None:
        threads = []
        for fault in sorted(CHOSEN.values(), key=lambda item: not item.first):
            thread = threading.Thread(target=self._prove, args=(fault,), daemon=True)
            thread.start()
            threads.append(thread)
            if fault.first:
                self._made[fault.name].wait(120)
        for thread in threads:
            thread.join(3600)

    def _prove(self, fault: Fault) -> None:
        for name in fault.after:
            if name in self._over:
                self._over[name].wait(3600)
        began = time.time()
        say(f"{fault.name}: {fault.what}")
        try:
            with fault.make(self.world):
                self._made[fault.name].set()
                for expected in fault.expected:
                    self._wait(fault, expected, began)
        except Exception:  # noqa: BLE001 - the other faults go on
            error = traceback.format_exc()
            say(f"{fault.name}: {error}")
            for expected in fault.expected:
                self.outcomes.setdefault(expected.key, Outcome(fault, expected, None, error))
        finally:
            self._made[fault.name].set()
            self._over[fault.name].set()
            say(f"{fault.name}: over")

    def _wait(self, fault: Fault, expected: Expected, began: float) -> None:
        outcome = Outcome(fault, expected, None)
        deadline = began + outcome.limit + PATIENCE
        at = None
        while at is None and time.time() < deadline:
            at = arrived(self.world, expected, began)
            time.sleep(0.5)
        outcome = Outcome(fault, expected, at and at - began)
        self.outcomes[expected.key] = outcome
        words = "not delivered" if at is None else f"delivered after {at - began:.0f} s"
        say(f"{fault.name}: {expected.alert} ({expected.severity}) {words}, {outcome.limit:.0f} s")


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def row(outcome: Outcome) -> str:
    expected = outcome.expected
    delivered = "**never**" if outcome.seconds is None else f"{outcome.seconds:.0f} s"
    cells = (
        expected.alert,
        expected.severity,
        outcome.fault.what,
        delivered,
        f"{outcome.limit:.0f} s",
        "yes" if outcome.in_time else "**no**",
    )
    return "| " + " | ".join(cells) + " |"


def report(proof: Proof) -> str:
    outcomes = [proof.outcomes[key] for key in ALERTS if key in proof.outcomes]
    in_time = sum(item.in_time for item in outcomes)
    slack = sum(post.path == "/slack" for post in proof.world.receiver.posts)
    lines = [
        f"{in_time} of {len(outcomes)} alerts were delivered in time. Each fault was made in a",
        "running stack, and its alert came from its Alertmanager to an HTTP server outside of it,",
        "as the webhook's JSON. Seconds count from the beginning of the fault to the arrival.",
        "",
        "| Alert | Severity | Fault | Delivered after | Limit | In time |",
        "|---|---|---|---|---|---|",
        *map(row, outcomes),
        "",
        "A limit is the sum of what a metric takes to show the fault, a round of the collector of",
        "containers' figures, a scrape, an evaluation of the rule and of the recorded series it",
        "needs, the rule's own `for`, the group's wait and 20 s.",
        "",
        f"The same alerts came by mail ({len(proof.world.mail.mails)} mails over SMTP) and in",
        f"Slack's format ({slack} messages).",
        "",
        "Not made, and judged by promtool alone:",
        "",
        *(f"- {name} ({severity}): {why}." for (name, severity), why in EXCEPTIONS.items()),
        "",
    ]
    return page("Alerts delivered", "make prove", "\n".join(lines))


@pytest.fixture(scope="module")
def proof(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proof]:
    keep = bool(os.environ.get("KEEP_STACK"))
    with deployed(tmp_path_factory.mktemp("certificates"), keep=keep) as world:
        proof = Proof(world)
        proof.run()
        if CHOSEN is FAULTS:
            write(PAGE, report(proof))
        yield proof


@pytest.mark.parametrize("key", EXPECTED, ids="-".join)
def test_is_delivered_in_time(proof: Proof, key: tuple[str, str]) -> None:
    """BM-6: the fault is made, and the receiver hears of it."""
    outcome = proof.outcomes[key]
    assert not outcome.error
    assert outcome.seconds is not None, f"{outcome.fault.what}: not delivered"
    assert outcome.in_time, f"{outcome.seconds:.0f} s, limit {outcome.limit:.0f} s"


def test_mail_and_slack_get_alerts_too(proof: Proof) -> None:
    """BM-6: by SMTP and in Slack's format, with what the alert says."""
    mails = [text for _, text in proof.world.mail.mails]
    assert any("To: operator@localhost" in mail and "FIRING" in mail for mail in mails)
    messages = [post.body for post in proof.world.receiver.posts if post.path == "/slack"]
    assert any(body["attachments"][0]["title"].startswith("FIRING") for body in messages)
