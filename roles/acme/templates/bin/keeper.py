"""Keeps the certificate that nginx serves, by lego.

    keeper.py serve     ask for a certificate when one is due, say how it goes on /metrics
    keeper.py renew     ask for one now, with a new key
    keeper.py show      what is served, and what comes next
    keeper.py healthy   whether `serve` answers

What is due is judged by what is there. nginx reads the pair at each handshake, so nothing is told
to reload. A renewal keeps the private key: whoever reads while the pair is exchanged and meets the
old certificate and the new key, or the other way round, meets the same key.
"""

from __future__ import annotations

import argparse
import datetime as dt
import hashlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from keeping import (
    Refused,
    State,
    alone,
    answered,
    ask_health,
    gauges,
    now,
    say,
    serve_metrics,
    write,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

HOME = Path("/var/lib/acme")
LIVE = Path("/var/lib/tls")
WEBROOT = Path("/run/acme")
CONFIG = Path("/etc/compose-stack/current/config")
SECRETS = Path("/run/secrets")
PORT = 9121
EVERY = 10.0
"""Seconds between two looks at what is due; less when a certificate lives for some minutes."""
PAUSES = (60, 300, 900, 3600)
"""Seconds after the first, second, ... failure in which nothing is asked. Let's Encrypt takes five
failures of a name in an hour, and one more every twelve minutes."""
LONGEST = 1800
"""Seconds that a request may take: a record in the DNS has to get around."""


@dataclass(frozen=True)
class Wanted:
    """What to ask for, and how."""

    names: tuple[str, ...]
    email: str
    directory: str
    key_type: str
    challenge: str
    provider: str
    resolvers: tuple[str, ...]
    settings: dict[str, str]
    secrets: dict[str, str]
    authorities: bool

    @classmethod
    def read(cls) -> Wanted:
        found = json.loads((CONFIG / "request.json").read_text())
        found["names"], found["resolvers"] = tuple(found["names"]), tuple(found["resolvers"])
        return cls(**found)

    def environment(self) -> dict[str, str]:
        """What lego is told beside its arguments: secrets by the names of their files."""
        found = {"PATH": os.environ["PATH"], "HOME": "/tmp"}  # noqa: S108  a memory of its own
        found |= {name: str(value) for name, value in self.settings.items()}
        found |= {f"{name}_FILE": str(SECRETS / file) for name, file in self.secrets.items()}
        if self.authorities:
            found["LEGO_CA_CERTIFICATES"] = str(CONFIG / "authorities.pem")
            found["LEGO_CA_SYSTEM_CERT_POOL"] = "true"
        return found

    def digest(self) -> str:
        """Changes when something is asked in another way, which is worth a try at once."""
        parts = [repr(self).encode()]
        parts += [(SECRETS / file).read_bytes() for file in self.secrets.values()]
        if self.authorities:
            parts.append((CONFIG / "authorities.pem").read_bytes())
        return hashlib.sha256(b"\0".join(parts)).hexdigest()


@dataclass(frozen=True)
class Pair:
    """A certificate with its chain, and its private key; PEM."""

    chain: str
    key: str

    @property
    def leaf(self) -> x509.Certificate:
        return x509.load_pem_x509_certificate(self.chain.encode())

    @property
    def names(self) -> list[str]:
        found = self.leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names = found.get_values_for_type(x509.DNSName)
        return [*names, *map(str, found.get_values_for_type(x509.IPAddress))]

    @property
    def ends(self) -> dt.datetime:
        return self.leaf.not_valid_after_utc

    @property
    def life(self) -> dt.timedelta:
        return self.ends - self.leaf.not_valid_before_utc

    @property
    def renewal(self) -> dt.datetime:
        """When a third of its life is left."""
        return self.ends - self.life / 3

    def fits(self) -> bool:
        """Whether the key is the certificate's."""
        key = serialization.load_pem_private_key(self.key.encode(), None)
        return public(key.public_key()) == public(self.leaf.public_key())


def public(key: Any) -> bytes:
    encoded: bytes = key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return encoded


# -- what is there ------------------------------------------------------------------------------


REMEMBERED: dict[str, Any] = {"requests": 0, "failed": 0, "failures": 0, "why": "", "next": 0}
STATE = State(HOME / "keeper.json", **REMEMBERED)
"""The pair, whence it came, and what failed since."""


def kept() -> Pair | None:
    """The pair that the authority gave last."""
    found = STATE.read()
    return Pair(found["chain"], found["key"]) if "chain" in found else None


def served() -> Pair | None:
    """The pair that nginx reads, wherever it came from."""
    try:
        directory = LIVE / (LIVE / "current").readlink()
        return Pair(*((directory / name).read_text() for name in ("fullchain.pem", "privkey.pem")))
    except OSError:
        return None


def other(pair: Pair, directory: str, key_type: str, wanted: Wanted) -> str:
    """Why a pair is not what is wanted; empty when it is."""
    if directory != wanted.directory:
        return f"the certificate is from {directory}"
    if set(pair.names) != set(wanted.names):
        return f"the certificate is for {', '.join(pair.names)}"
    if key_type != wanted.key_type:
        return f"the key is of type {key_type}"
    return ""


def due(wanted: Wanted, at: dt.datetime) -> str:
    """Why a certificate has to be asked for; empty when none has."""
    pair, state = kept(), STATE.read()
    if pair is None:
        return "there is no certificate from the authority yet"
    if why := other(pair, state["directory"], state["key_type"], wanted):
        return why
    return (
        f"the certificate ends at {pair.ends:%Y-%m-%d %H:%M:%S} UTC" if at >= pair.renewal else ""
    )


# -- asking -------------------------------------------------------------------------------------


def new_key(kind: str) -> str:
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
    if kind.startswith("rsa"):
        key = rsa.generate_private_key(65537, int(kind[3:]))
    else:
        key = ec.generate_private_key({"ec256": ec.SECP256R1(), "ec384": ec.SECP384R1()}[kind])
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()


def signing_request(wanted: Wanted, key: str) -> bytes:
    names = x509.SubjectAlternativeName([x509.DNSName(name) for name in wanted.names])
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    private: Any = serialization.load_pem_private_key(key.encode(), None)
    request = builder.add_extension(names, critical=False).sign(private, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM)


def command(wanted: Wanted, csr: Path) -> list[str]:
    words = ["lego", "--accept-tos", "--path", str(HOME / "lego"), "--email", wanted.email]
    words += ["--server", wanted.directory, "--csr", str(csr)]
    if wanted.challenge == "dns-01":
        words += ["--dns", wanted.provider]
        for resolver in wanted.resolvers:
            words += ["--dns.resolvers", resolver]
    else:
        words += ["--http", "--http.webroot", str(WEBROOT)]
    return [*words, "run"]


def reason(output: str) -> str:
    """What lego said last, without its time."""
    said = [re.sub(r"^\d{4}/\d\d/\d\d \d\d:\d\d:\d\d ", "", line) for line in output.splitlines()]
    said = [line.strip() for line in said if line.strip()]
    # What is wrong with each name stands in lines of its own.
    first = next((n for n, line in enumerate(said) if line.startswith("Could not ")), len(said) - 1)
    return " ".join(said[max(first, 0) :])[:1000] or "lego said nothing"


def asked_to_wait(output: str) -> float:
    """Until when the authority wants to be left alone, if it says so."""
    found = re.search(r"retry after (\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d)", output)
    return dt.datetime.fromisoformat(f"{found[1]}+00:00").timestamp() if found else 0


def obtained(wanted: Wanted, key: str) -> Pair:
    """A certificate for a key, from the authority.

    Raises:
        Refused: there is none.
    """
    given = HOME / "lego" / "certificates"
    shutil.rmtree(given, ignore_errors=True)
    with tempfile.NamedTemporaryFile(suffix=".csr") as csr:
        csr.write(signing_request(wanted, key))
        csr.flush()
        try:
            done = subprocess.run(
                command(wanted, Path(csr.name)),
                env=wanted.environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=LONGEST,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise Refused(f"lego was not done after {LONGEST // 60} minutes") from None
    say(done.stdout.rstrip())
    if done.returncode:
        raise Refused(reason(done.stdout))
    chains = [path for path in given.glob("*.crt") if not path.name.endswith(".issuer.crt")]
    if len(chains) != 1:
        raise Refused("lego ended well, and left no certificate")
    pair = Pair(chains[0].read_text(), key)
    if not pair.fits() or not set(wanted.names) <= set(pair.names):
        raise Refused(f"the authority's certificate is for {', '.join(pair.names)}, or another key")
    return pair


def ask(wanted: Wanted, *, fresh_key: bool = False) -> Pair:
    """Ask for a certificate, and remember how that went.

    Raises:
        Refused: there is none; what was there stays.
    """
    state = STATE.read()
    key = state.get("key")
    if key is None or fresh_key or state["key_type"] != wanted.key_type:
        key = new_key(wanted.key_type)
    try:
        pair = obtained(wanted, key)
    except (Refused, OSError) as error:
        digest = wanted.digest()
        failures = state["failures"] + 1 if state.get("digest") == digest else 1
        later = max(time.time() + pause(failures, kept()), asked_to_wait(str(error)))
        STATE.update(
            requests=state["requests"] + 1,
            failed=state["failed"] + 1,
            failures=failures,
            why=str(error),
            next=later,
            digest=digest,
        )
        raise Refused(str(error)) from error
    STATE.update(
        chain=pair.chain,
        key=pair.key,
        key_type=wanted.key_type,
        directory=wanted.directory,
        requests=state["requests"] + 1,
        success=time.time(),
        failures=0,
        why="",
        next=0,
    )
    return pair


def pause(failures: int, pair: Pair | None) -> float:
    """Seconds after so many failures in which nothing is asked."""
    seconds = float(PAUSES[min(failures, len(PAUSES)) - 1])
    # A third of its life is left to try in: that is for more tries than one, however short it is.
    return min(seconds, pair.life.total_seconds() / 15) if pair else seconds


# -- serving ------------------------------------------------------------------------------------


def install(pair: Pair) -> None:
    """Have nginx read this pair, by one rename."""
    digest = hashlib.sha256((pair.chain + pair.key).encode()).hexdigest()[:12]
    # The same may be there already, or be half written by a keeper that was killed.
    names = (f"{digest}-{number}" if number else digest for number in itertools.count())
    name = next(name for name in names if not (LIVE / name).exists())
    (LIVE / name).mkdir(mode=0o755)
    write(LIVE / name / "fullchain.pem", pair.chain, 0o444)
    write(LIVE / name / "privkey.pem", pair.key, 0o400)
    synchronise(LIVE / name)
    current = LIVE / "current"
    # Whoever is on the way through the link still finds the pair that it led to.
    stays = {name, current.readlink().name if current.is_symlink() else ""}
    link(current, name)
    for file in ("fullchain.pem", "privkey.pem"):
        link(LIVE / file, f"current/{file}")
    (LIVE / "ca.pem").unlink(missing_ok=True)
    synchronise(LIVE)
    for path in LIVE.iterdir():
        if path.is_dir() and not path.is_symlink() and path.name not in stays:
            # What a run of Ansible has put there is root's, and goes with the next one.
            shutil.rmtree(path, ignore_errors=True)


def link(path: Path, target: str) -> None:
    if path.is_symlink() and str(path.readlink()) == target:
        return
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target)
    fresh.replace(path)


def synchronise(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def put_in_place(wanted: Wanted) -> None:
    """Serve what is kept, if it is what is wanted and something else is served."""
    pair, state = kept(), STATE.read()
    if pair is None or other(pair, state["directory"], state["key_type"], wanted):
        return
    if pair.ends > now() and pair != served():
        install(pair)
        say(f"served from now on: {', '.join(pair.names)} until {pair.ends:%Y-%m-%d %H:%M:%S} UTC")


def look() -> None:
    """Do what is due.

    Raises:
        Refused: it failed.
    """
    with alone(HOME / ".lock"):
        wanted = Wanted.read()
        put_in_place(wanted)
        why, state = due(wanted, now()), STATE.read()
        waits = state.get("digest") == wanted.digest() and time.time() < state["next"]
        if why and not waits:
            say(f"asking {wanted.directory}: {why}")
            ask(wanted)
            put_in_place(wanted)


def serve() -> None:
    status = Status()
    serve_metrics(PORT, status.text)
    while True:
        try:
            look()
            status.trouble = False
        except Refused as error:
            say(f"no certificate: {error}")
            status.trouble = False
        except (OSError, ValueError, KeyError) as error:
            # Such as a directory that is not the keeper's any more: the mode was changed.
            say(f"cannot keep the certificate: {error}")
            status.trouble = True
        pair = kept()
        time.sleep(min(EVERY, max(1.0, pair.life.total_seconds() / 60)) if pair else EVERY)


def renew() -> dict[str, Any]:
    """Ask now, whatever is due, with a new key.

    Raises:
        Refused: there is none.
    """
    try:
        with alone(HOME / ".lock"):
            wanted = Wanted.read()
            ask(wanted, fresh_key=True)
            put_in_place(wanted)
    except (OSError, ValueError) as error:
        raise Refused(str(error)) from error
    return show()


def show() -> dict[str, Any]:
    """What is served, and what comes next."""
    wanted, pair, own, state = Wanted.read(), served(), kept(), STATE.read()
    found: dict[str, Any] = {
        "directory": wanted.directory,
        "due": due(wanted, now()),
        "why": state["why"] if state["failures"] else "",
        "next": moment(state["next"]) if state["failures"] else "",
        "renewal": moment(own.renewal.timestamp()) if own else "",
        "issued": pair is not None and pair == own,
    }
    if pair:
        found |= {
            "subject": pair.leaf.subject.rfc4514_string(),
            "issuer": pair.leaf.issuer.rfc4514_string(),
            "names": pair.names,
            "not_after": moment(pair.ends.timestamp()),
            "days_left": (pair.ends - now()).days,
            "fingerprint": pair.leaf.fingerprint(hashes.SHA256()).hex(":").upper(),
        }
    return found


def moment(seconds: float) -> str:
    return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Status:
    """What the keeper says of itself on /metrics."""

    def __init__(self) -> None:
        self.trouble = False
        """Whether the keeper cannot look at all."""

    def text(self) -> str:
        state, own, pair = STATE.read(), kept(), served()
        values: dict[str, float | dict[str, float]] = {
            "acme_failing": int(bool(state["failures"] or self.trouble)),
            "acme_requests_total": state["requests"],
            "acme_requests_failed_total": state["failed"],
            "acme_last_success_timestamp_seconds": state.get("success", 0),
            "acme_renewal_timestamp_seconds": own.renewal.timestamp() if own else 0,
            "acme_certificate_issued": int(pair is not None and pair == own),
        }
        if pair:
            values["acme_certificate_expiry_timestamp_seconds"] = pair.ends.timestamp()
            values["acme_certificate_lifetime_seconds"] = pair.life.total_seconds()
        return gauges(values)


def main(words: Sequence[str]) -> Any:
    parser = argparse.ArgumentParser()
    verbs = parser.add_subparsers(dest="verb", required=True)
    answers: dict[str, Callable[[], Any]] = {
        "serve": serve,
        "renew": renew,
        "show": show,
        "healthy": lambda: ask_health(PORT),
    }
    for verb in answers:
        verbs.add_parser(verb)
    return answers[parser.parse_args(words).verb]()


if __name__ == "__main__":
    answered(lambda: main(sys.argv[1:]))
