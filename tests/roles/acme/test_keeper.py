"""When the keeper of the certificate asks, how long it waits, and what it puts in place."""

from __future__ import annotations

import datetime as dt
import importlib.util
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from plugins.module_utils import certificates
from tests.harness import ROOT
from tests.roles.tls.authority import Issued, issue

if TYPE_CHECKING:
    from collections.abc import Callable

SOURCE = ROOT / "roles" / "acme" / "templates" / "bin" / "keeper.py"
sys.path.insert(0, str(ROOT / "files" / "templates"))  # what it shares with other keepers
_spec = importlib.util.spec_from_file_location("acme_keeper", SOURCE)
assert _spec is not None
assert _spec.loader is not None
keeper: Any = importlib.util.module_from_spec(_spec)
sys.modules["acme_keeper"] = keeper
_spec.loader.exec_module(keeper)

DIRECTORY = "https://acme.test/dir"
WANTED = keeper.Wanted(
    ("a.test", "b.test"), "x@a.test", DIRECTORY, "ec256", "http-01", "", (), {}, {}, False
)


def pair(issued: Issued) -> Any:
    return keeper.Pair(issued.pem, issued.key_pem())


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A keeper's own directories, and settings that it reads."""
    for name in ("home", "live", "config", "secrets"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(keeper, "HOME", tmp_path / "home")
    monkeypatch.setattr(keeper, "LIVE", tmp_path / "live")
    monkeypatch.setattr(keeper, "CONFIG", tmp_path / "config")
    monkeypatch.setattr(keeper, "SECRETS", tmp_path / "secrets")
    monkeypatch.setattr(
        keeper, "STATE", keeper.State(tmp_path / "home" / "keeper.json", **keeper.REMEMBERED)
    )
    (tmp_path / "config" / "request.json").write_text(json.dumps(vars(WANTED)))
    return tmp_path


def keep(issued: Issued, **more: Any) -> None:
    facts = {"directory": DIRECTORY, "key_type": "ec256", **more}
    keeper.STATE.update(chain=issued.pem, key=issued.key_pem(), **facts)


def at(day: float) -> dt.datetime:
    return dt.datetime.now(dt.UTC) + dt.timedelta(days=day)


@pytest.mark.parametrize("days", [90, 45, 6, 30 / 86400], ids=["90", "45", "6", "half a minute"])
def test_due_with_a_third_of_its_life_left(days: float) -> None:
    """BM-11: whatever the authority makes of a certificate's life."""
    keep(issue("a.test", "b.test", days=days, since=0))
    second = 1.5 / 86400
    assert keeper.due(WANTED, at(days * 2 / 3 - second)) == ""
    assert "ends at" in keeper.due(WANTED, at(days * 2 / 3 + second))


def test_due_when_something_else_is_wanted() -> None:
    """BM-11: other names, another authority (after a trial with staging), another kind of key."""
    assert "no certificate" in keeper.due(WANTED, at(0))
    keep(issue("a.test", "b.test"))
    assert keeper.due(WANTED, at(0)) == ""
    assert keeper.due(replace(WANTED, names=("b.test", "a.test")), at(0)) == ""
    assert "is for a.test, b.test" in keeper.due(replace(WANTED, names=("a.test",)), at(0))
    assert "is from" in keeper.due(replace(WANTED, directory="https://other.test"), at(0))
    assert "of type" in keeper.due(replace(WANTED, key_type="rsa2048"), at(0))


def test_it_stays_below_the_limits_of_lets_encrypt() -> None:
    """BM-11: five failures of a name in an hour, and one more every twelve minutes."""
    moments, now = [0.0], 0.0
    for failures in range(1, 200):
        now += keeper.pause(failures, None)
        moments.append(now)
    for start in moments:
        within = [moment for moment in moments if start <= moment < start + 3600]
        assert len(within) < 5
    assert keeper.pause(1, None) <= 60
    assert moments[-1] < 200 * 3600


def test_a_short_life_is_tried_for_often() -> None:
    """BM-11: five times at least before it ends."""
    for days in (90, 6, 1 / 24, 30 / 86400):
        found = pair(issue("a.test", days=days, since=0))
        left = found.life.total_seconds() / 3
        assert sum(keeper.pause(n, found) for n in range(1, 5)) < left


def refuse(count: list[int], text: str) -> Callable[..., Any]:
    def refused(*_: Any) -> Any:
        count.append(1)
        raise keeper.Refused(text)

    return refused


def test_a_failure_is_kept_and_waited_for(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """BM-11: by a restart, too; other settings are tried at once, and what is there is kept."""
    served = issue("a.test", "b.test", days=10, since=-80)
    keep(served)
    asked: list[int] = []
    monkeypatch.setattr(keeper, "obtained", refuse(asked, "no"))
    with pytest.raises(keeper.Refused):
        keeper.look()
    keeper.look()
    assert len(asked) == 1
    assert keeper.kept() == pair(served)
    assert keeper.served() == pair(served)

    (home / "config" / "request.json").write_text(
        json.dumps(vars(replace(WANTED, email="other@a.test")))
    )
    with pytest.raises(keeper.Refused):
        keeper.look()
    assert len(asked) == 2
    assert keeper.STATE.read()["failures"] == 1


def test_who_asks_to_be_left_alone_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """BM-11: Let's Encrypt says until when."""
    until = at(1).replace(microsecond=0)
    text = f"429: too many certificates, retry after {until:%Y-%m-%d %H:%M:%S} UTC: see docs"
    monkeypatch.setattr(keeper, "obtained", refuse([], text))
    with pytest.raises(keeper.Refused):
        keeper.look()
    assert keeper.STATE.read()["next"] == until.timestamp()


def test_a_renewal_keeps_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """BM-11: a new one only when asked, or when another kind is wanted."""
    used: list[str] = []

    def obtained(_: Any, key: str) -> Any:
        used.append(key)
        private = certificates.load_key(key.encode())
        return keeper.Pair(issue("a.test", "b.test", key=private).pem, key)

    monkeypatch.setattr(keeper, "obtained", obtained)
    for options in ({}, {}, {"fresh_key": True}, {}):
        keeper.ask(WANTED, **options)
    assert used[0] == used[1] != used[2] == used[3]
    keeper.ask(replace(WANTED, key_type="rsa2048"))
    assert used[4] != used[3]
    assert certificates.load_key(used[4].encode()).key_size == 2048


def test_what_lego_says_last() -> None:
    """BM-11: the operator reads which name failed, and why."""
    output = """\
2026/11/30 23:00:00 [INFO] [a.test, b.test] acme: Obtaining bundled SAN certificate given a CSR
2026/11/30 23:00:01 Could not obtain certificate:
\terror: one or more domains had a problem:
[b.test] acme: error: 403 :: urn:ietf:params:acme:error:unauthorized :: Invalid response
"""
    found = keeper.reason(output)
    assert found.startswith("Could not obtain certificate: error: one or more")
    assert "[b.test] acme: error: 403" in found
    assert keeper.reason("") == "lego said nothing"


class Crash(BaseException):
    """Where a keeper is killed."""


def test_a_keeper_that_is_killed_leaves_a_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    """BM-11: at every step of putting a pair in place, one that fits is served."""
    old, survived = pair(issue("a.test")), 0
    keeper.install(old)
    for steps in range(100):
        new, left = pair(issue("a.test")), [steps]

        def count(original: Any, left: list[int] = left) -> Any:
            def counted(*arguments: Any, **options: Any) -> Any:
                left[0] -= 1
                if left[0] < 0:
                    raise Crash
                return original(*arguments, **options)

            return counted

        with monkeypatch.context() as patch:
            for place, name in (
                (os, "fsync"),
                (os, "open"),
                (Path, "replace"),
                (Path, "symlink_to"),
                (Path, "mkdir"),
            ):
                patch.setattr(place, name, count(getattr(place, name)))
            try:
                keeper.install(new)
                finished = True
            except Crash:
                survived += 1
                finished = False
        assert keeper.served() in (old, new)
        assert keeper.served().fits()
        if finished:
            assert keeper.served() == new
            break
        old = keeper.served()
    assert survived > 5
    keeper.install(pair(issue("a.test")))
    pairs = [path for path in keeper.LIVE.iterdir() if path.is_dir() and not path.is_symlink()]
    assert len(pairs) == 2


def test_what_is_kept_returns_when_something_else_is_served() -> None:
    """BM-11: after another mode; not when it is over, or is not what is wanted any more."""
    local, own = pair(issue("a.test")), issue("a.test", "b.test")
    keeper.install(local)
    keep(own, directory="https://staging.test")
    keeper.put_in_place(WANTED)
    assert keeper.served() == local
    keep(issue("a.test", "b.test", days=-0.1, since=-1))
    keeper.put_in_place(WANTED)
    assert keeper.served() == local
    keep(own)
    keeper.put_in_place(WANTED)
    assert keeper.served() == pair(own)


def test_secrets_are_named_by_their_files(home: Path) -> None:
    """BM-11, FS-8: and another value is tried at once."""
    wanted = replace(WANTED, settings={"TTL": "60"}, secrets={"CF_DNS_API_TOKEN": "acme_token"})
    (home / "secrets" / "acme_token").write_text("one")
    found = wanted.environment()
    assert found["TTL"] == "60"
    assert found["CF_DNS_API_TOKEN_FILE"] == str(home / "secrets" / "acme_token")
    before = wanted.digest()
    (home / "secrets" / "acme_token").write_text("two")
    assert wanted.digest() != before
