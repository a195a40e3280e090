"""BM-11: certificates from a real ACME server, renewed by nobody, and when they are not.

The tests are one story, in order: each takes the stack as the one before has left it.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

from tests.acme.conftest import (
    DIRECTORY,
    ENGINE,
    LIFE,
    LONG,
    NAMES,
    SECRET,
    Load,
    World,
    modes,
    said,
)
from tests.harness import MAX_EXECUTIONS, wait_for

if TYPE_CHECKING:
    from cryptography import x509

DNS = {
    "acme_directory": LONG,
    "acme_challenge": "dns-01",
    "acme_dns_provider": "rfc2136",
    "acme_dns_settings": {
        "RFC2136_NAMESERVER": "ns.acme.test:53",
        "RFC2136_TSIG_ALGORITHM": "hmac-sha256.",
        "RFC2136_POLLING_INTERVAL": "1",
        "RFC2136_SEQUENCE_INTERVAL": "1",
    },
    "acme_dns_secrets": ["RFC2136_TSIG_KEY", "RFC2136_TSIG_SECRET"],
    "acme_dns_resolvers": ["ns.acme.test:53"],
    "secrets_values": {
        "acme_rfc2136_tsig_key": "lego-acme-test.",
        "acme_rfc2136_tsig_secret": SECRET,
    },
    "stack_server_names": ["acme.test", "*.acme.test"],
}


def names(certificate: x509.Certificate) -> set[str]:
    from plugins.module_utils.certificates import names_of

    return set(names_of(certificate))


def from_the_authority(world: World) -> bool:
    return "Pebble" in world.served().issuer.rfc4514_string()


def test_nginx_serves_before_there_is_a_certificate(world: World) -> None:
    """BM-11: with one of its own, until the authority can be reached; and it is said why."""
    first = world.run("site.yml").succeeded()
    assert first.changed > 0
    assert "local CA" in world.served().issuer.rfc4514_string()
    wait_for("a first try", lambda: world.metrics()["acme_failing"] == 1, 60)
    assert world.metrics()["acme_certificate_issued"] == 0
    shown = said(world.run("certs.yml").succeeded())
    assert "The authority has not given this one" in shown
    assert "lookup pebble" in shown
    refused = world.run("certs.yml", tls_renew=True).failed()
    assert "gave no certificate" in said(refused)
    assert "What was served is served on" in said(refused)


def test_a_second_run_has_nothing_to_do(world: World) -> None:
    """BM-11."""
    for options in ((), ("--check", "--diff")):
        again = world.run("site.yml", *options).succeeded()
        assert again.changed == 0
        assert again.executions <= MAX_EXECUTIONS


def test_http_01(world: World) -> None:
    """BM-11, FS-8: by a file on port 80; nginx is told nothing, and reads the key alone."""
    before = world.nginx()
    world.reach_the_authority()
    assert "renewal" in said(world.run("certs.yml", tls_renew=True).succeeded())
    wait_for("its certificate", lambda: from_the_authority(world), 10)
    assert names(world.served()) == set(NAMES)
    load = Load(world.client())
    with load.running():
        time.sleep(1)
    assert load.new > 0
    assert not load.failed
    assert world.nginx() == before
    left = [path for path in (DIRECTORY / "run/acme").rglob("*") if path.is_file()]
    assert left == [], "the challenge is taken away"
    assert world.stack.site.plain("/.well-known/acme-challenge/nothing").status_code == 404
    assert world.stack.site.plain("/other").status_code == 301
    found = modes(DIRECTORY / "tls")
    keys = {found[path] for path in found if path.endswith("/privkey.pem")}
    assert keys == {(101, 0o400)}
    assert found["acme/keeper.json"] == (101, 0o600)
    assert world.metrics()["acme_failing"] == 0


def test_two_renewals_lose_nothing(world: World) -> None:
    """BM-11: under load on new connections and kept ones, by nobody, with the same key."""
    before, key = world.nginx(), world.key()
    load = Load(world.client())
    began = time.monotonic()
    with load.running():
        wait_for("three certificates", lambda: len(load.serials) >= 3, 4 * LIFE)
    seconds = time.monotonic() - began
    print(
        f"{len(load.serials)} certificates in {seconds:.0f} s: {load.new} requests over new "
        f"connections, {load.kept} over 4 kept ones, {len(load.failed)} failed"
    )
    assert not load.failed
    assert load.new > 500
    assert load.reopened == 0
    assert world.nginx() == before
    assert world.key() == key
    pairs = [p for p in (DIRECTORY / "tls/live").iterdir() if p.is_dir() and not p.is_symlink()]
    assert len(pairs) <= 3, "the live pair, the one before, and what the run has put there"


def test_a_new_key_is_taken_when_asked(world: World) -> None:
    """BM-11: `make certs RENEW=1`."""
    before, key = world.nginx(), world.key()
    world.run("certs.yml", tls_renew=True).succeeded()
    assert world.key() != key
    assert world.nginx() == before
    load = Load(world.client())
    with load.running():
        time.sleep(1)
    assert not load.failed


def test_an_authority_that_is_away(world: World) -> None:
    """BM-11: what is served is served on, somebody is told, and it mends itself."""
    wait_for(
        "a fresh one", lambda: world.metrics()["acme_renewal_timestamp_seconds"] > time.time(), 20
    )
    with world.without_the_authority():
        served = world.served().serial_number
        wait_for("it is said", lambda: world.metrics()["acme_failing"] == 1, 2 * LIFE)
        assert world.served().serial_number == served
        shown = said(world.run("certs.yml").succeeded())
        assert "the certificate ends at" in shown
        assert "next try" in shown
        figures = world.metrics()
        left = figures["acme_certificate_expiry_timestamp_seconds"] - time.time()
        assert left < figures["acme_certificate_lifetime_seconds"] / 3
    began = time.monotonic()
    wait_for("a new one", lambda: world.served().serial_number != served, LIFE)
    print(f"renewed {time.monotonic() - began:.1f} s after the authority was back")
    assert world.metrics()["acme_failing"] == 0
    load = Load(world.client())
    with load.running():
        time.sleep(1)
    assert not load.failed


def test_a_name_that_is_not_ours(world: World) -> None:
    """BM-11: nothing is served for it, what was served stays, and it is said which name."""
    wrong = [*NAMES, "other.test"]
    world.run("site.yml", stack_server_names=wrong).succeeded()
    wait_for("it is said", lambda: "other.test" in world.keeper("show")["why"], 90)
    assert names(world.served()) == set(NAMES)
    assert world.metrics()["acme_failing"] == 1


def test_dns_01(world: World) -> None:
    """BM-11, FS-8: by a record in the zone, for a wildcard; from another authority at once."""
    world.run("site.yml", **DNS).succeeded()
    wait_for("a wildcard", lambda: "*.acme.test" in names(world.served()), 90)
    assert world.records("TXT", "_acme-challenge.acme.test") == []
    load = Load(world.client())
    with load.running():
        time.sleep(1)
    assert not load.failed
    keeper = world.stack.one("acme")
    assert SECRET not in json.dumps(keeper)
    assert SECRET not in ENGINE.run("docker", "logs", keeper["Id"])


def test_another_mode_and_back(world: World) -> None:
    """BM-11: the certificate that there was is served again, and nobody was asked for it."""
    served, asked = world.served().serial_number, world.metrics()["acme_requests_total"]
    world.run("site.yml", tls_mode="selfsigned").succeeded()
    assert "local CA" in world.served().issuer.rfc4514_string()
    assert "acme" not in world.stack.services()
    world.run("site.yml", **DNS).succeeded()
    wait_for("the one before", lambda: world.served().serial_number == served, 30)
    assert world.metrics()["acme_requests_total"] == asked
    assert world.run("site.yml", **DNS).succeeded().changed == 0
