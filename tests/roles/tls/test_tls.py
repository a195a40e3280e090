"""The tls role, run for real into a temporary directory."""

from __future__ import annotations

import base64
import contextlib
import importlib
import json
import os
import re
import socket
import ssl
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ansible.module_utils
import pytest
from cryptography import x509

from plugins.module_utils import certificates
from tests.harness import ROOT, Run, playbook
from tests.roles.tls.authority import Issued, issue, weak

if TYPE_CHECKING:
    from collections.abc import Iterator

# Where it finds the repository's own; it is imported here for what a play cannot show.
ansible.module_utils.__path__.append(str(ROOT / "plugins" / "module_utils"))
certificate_store = importlib.import_module("plugins.module_utils.certificate_store")
preflight = importlib.import_module("plugins.modules.preflight")

OWNER = 101


@pytest.fixture
def stack(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "stack"


def run(
    stack: Path, *options: str, names: tuple[str, ...] = ("localhost",), **variables: Any
) -> Run:
    return playbook(
        "localhost,",
        *options,
        name="../tests/roles/tls/play.yml",
        variables={
            "ansible_connection": "local",
            "ansible_python_interpreter": sys.executable,
            "stack_dir": str(stack),
            "stack_project": "tried",
            "stack_server_names": list(names),
            **variables,
        },
        seconds=90,
    )


def provided(stack: Path, pair: tuple[str, str], *options: str, **variables: Any) -> Run:
    return run(
        stack,
        *options,
        tls_mode="provided",
        tls_certificate_file=pair[0],
        tls_private_key_file=pair[1],
        **variables,
    )


def live(stack: Path) -> Path:
    return stack / "tls" / "live"


def served(stack: Path) -> x509.Certificate:
    """The certificate that is live, after a look at everything nginx relies on."""
    directory = live(stack)
    certificate = x509.load_pem_x509_certificate((directory / "fullchain.pem").read_bytes())
    key = certificates.load_key((directory / "privkey.pem").read_bytes())
    assert certificates.fits(certificate, key)
    status = (directory / "privkey.pem").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o400, OWNER)
    assert stat.S_IMODE((stack / "tls").stat().st_mode) == 0o700
    assert stat.S_IMODE(directory.stat().st_mode) == 0o755
    return certificate


def reloads(done: Run) -> bool:
    return "NEW=True" in done.output


@contextlib.contextmanager
def server(stack: Path) -> Iterator[int]:
    """A TLS server with the live pair, on a loopback port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(live(stack) / "fullchain.pem", live(stack) / "privkey.pem")
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    peer, _ = listener.accept()
                    with (
                        contextlib.suppress(OSError),
                        context.wrap_socket(peer, server_side=True) as s,
                    ):
                        s.recv(4096)
                        s.sendall(b"HTTP/1.0 204 No Content\r\n\r\n")

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]


def accepted(stack: Path, port: int, name: str) -> bool:
    """Whether a client that trusts the local authority alone accepts the server by this name."""
    context = ssl.create_default_context(cafile=live(stack) / "ca.pem")
    try:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=5) as raw,
            context.wrap_socket(raw, server_hostname=name),
        ):
            return True
    except ssl.SSLCertVerificationError:
        return False


def test_self_signed_from_nothing(stack: Path) -> None:
    """CS-9: an authority and a certificate that clients accept; the second run does nothing."""
    checked = run(stack, "--check", "--diff").succeeded()
    assert checked.changed == 1
    assert "certificate: there is none yet" in checked.output
    assert not stack.exists()

    first = run(stack, "--diff").succeeded()
    assert reloads(first)
    assert "PRIVATE KEY" not in first.output
    certificate = served(stack)
    lifetime = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    assert lifetime.days <= 397
    assert stat.S_IMODE((stack / "tls/ca/ca.key").stat().st_mode) == 0o400
    with server(stack) as port:
        assert accepted(stack, port, "localhost")
        assert accepted(stack, port, "127.0.0.1")
        assert accepted(stack, port, "::1")
        assert not accepted(stack, port, "www.example.org")
        answer = subprocess.run(
            ["curl", "-sS", "--cacert", live(stack) / "ca.pem", f"https://localhost:{port}/"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert answer.returncode == 0, answer.stderr

    for options in ((), ("--check", "--diff")):
        again = run(stack, *options).succeeded()
        assert (again.changed, again.executions) == (0, 1)
        assert not reloads(again)
    assert served(stack) == certificate


def test_authority_signs_for_the_stack_alone(stack: Path) -> None:
    """CS-9: whoever trusts the local authority need not fear its key for any other name."""
    run(stack, names=("app.test",)).succeeded()
    ca = x509.load_pem_x509_certificate((stack / "tls/ca/ca.pem").read_bytes())
    assert certificates.permits(ca, "app.test")
    assert certificates.permits(ca, "127.0.0.1")
    assert not certificates.permits(ca, "bank.test")
    assert not certificates.permits(ca, "10.0.0.1")
    key = certificates.load_key((stack / "tls/ca/ca.key").read_bytes())
    forged = issue("bank.test", by=Issued(ca, key))
    (live(stack) / "fullchain.pem").unlink()
    (live(stack) / "fullchain.pem").write_text(forged.pem)
    (live(stack) / "privkey.pem").unlink()
    (live(stack) / "privkey.pem").write_text(forged.key_pem())
    with server(stack) as port:
        assert not accepted(stack, port, "bank.test")


def test_self_signed_is_replaced_when_due(stack: Path) -> None:
    """CS-9: when names change, when it runs out, when asked; the authority only when it must."""
    run(stack, names=("a.test", "*.b.test"), tls_valid_days=60).succeeded()
    first, authority = served(stack), (stack / "tls/ca/ca.pem").read_text()

    fewer = run(stack, "--diff", names=("a.test", "x.b.test"), tls_valid_days=60).succeeded()
    second = served(stack)
    assert reloads(fewer)
    assert second != first
    assert "x.b.test" in certificates.names_of(second)
    assert "is also for *.b.test" in " ".join(fewer.output.split())
    assert (stack / "tls/ca/ca.pem").read_text() == authority

    names = ("a.test", "x.b.test")
    expiring = run(stack, names=names, tls_valid_days=61, tls_renew_days=60).succeeded()
    third = served(stack)
    assert reloads(expiring)
    assert third != second

    checked = run(stack, "--check", "--diff", names=names, tls_renew=True).succeeded()
    assert checked.changed == 1
    assert "a renewal was asked for" in checked.output
    assert served(stack) == third
    asked = run(stack, names=names, tls_renew=True).succeeded()
    assert reloads(asked)
    assert served(stack) != third
    assert (stack / "tls/ca/ca.pem").read_text() == authority
    pairs = [path for path in live(stack).iterdir() if path.is_dir() and not path.is_symlink()]
    assert len(pairs) == 2, "the live pair and, for whoever is reading it, the one before"

    other = run(stack, "--diff", names=("c.test",)).succeeded()
    assert "it may not sign for c.test" in " ".join(other.output.split())
    assert (stack / "tls/ca/ca.pem").read_text() != authority
    with server(stack) as port:
        assert accepted(stack, port, "c.test")


def test_preflight_saves_the_judgement(stack: Path) -> None:
    """CS-9: what preflight found in order, the role takes from it; what is due, it does."""

    def looked(**changes: Any) -> dict[str, Any]:
        asked = {
            "path": str(stack / "tls"),
            "names": ["localhost", "127.0.0.1", "::1"],
            "owner": OWNER,
            "renew_days": 30,
            "authority": True,
            "keeper": False,
            "renew": False,
        }
        found = preflight.Preflight({"certificate": {**asked, **changes}})
        found.find_certificate()
        facts: dict[str, Any] = found.facts
        return facts

    def facts(done: Run) -> str:
        return done.output.split("FACTS=")[1].split("PLAY RECAP")[0]

    nothing = looked()
    assert nothing["certificate"]["ready"] is False
    first = run(stack, preflight_facts=nothing).succeeded()
    assert first.changed > 0
    found = looked()
    assert found["certificate"]["ready"] is True
    again = run(stack, preflight_facts=found).succeeded()
    assert (again.changed, again.executions) == (0, 0)
    assert facts(again) == facts(first)
    assert not reloads(again)

    for due in ({"renew": True}, {"names": ["localhost", "other"]}, {"renew_days": 3000}):
        assert looked(**due)["certificate"]["ready"] is False
    (live(stack) / "privkey.pem").chmod(0o444)
    open_key = looked()
    assert open_key["certificate"]["ready"] is False
    assert run(stack, preflight_facts=open_key).succeeded().changed == 1
    (live(stack) / "fullchain.pem").resolve().write_text("damaged")
    assert looked()["certificate"]["ready"] is False


def test_with_an_authority_elsewhere_it_only_stands_in(stack: Path) -> None:
    """BM-11: one of its own where there is none; what a keeper has put there is the keeper's."""
    first = run(stack, tls_mode="acme").succeeded()
    assert first.changed > 0
    served(stack)
    assert (live(stack).stat().st_uid, stack.joinpath("tls").stat().st_uid) == (OWNER, 0)
    again = run(stack, tls_mode="acme").succeeded()
    assert (again.changed, again.executions) == (0, 1)

    # From elsewhere, for another name, and about to end.
    store = certificate_store.Store(stack / "tls", OWNER, check_mode=False, keeper=True)
    other = issue("other.test", days=0.5)
    store.install({"fullchain.pem": other.pem, "privkey.pem": other.key_pem()})
    left = run(stack, tls_mode="acme", tls_renew=True).succeeded()
    assert (left.changed, left.executions) == (0, 1)
    assert served(stack) == other.certificate

    back = run(stack, tls_mode="selfsigned").succeeded()
    assert reloads(back)
    assert served(stack) != other.certificate
    assert live(stack).stat().st_uid == 0
    assert run(stack, tls_mode="acme").succeeded().changed == 1, "the directory is the keeper's"
    (live(stack) / "fullchain.pem").resolve().unlink()
    assert run(stack, tls_mode="acme").succeeded().changed > 0
    served(stack)


def test_damage_is_repaired(stack: Path) -> None:
    """CS-9: modes without a new certificate; a key that does not fit with one."""
    run(stack).succeeded()
    certificate = served(stack)
    (live(stack) / "privkey.pem").resolve().chmod(0o644)
    (stack / "tls").chmod(0o755)
    if os.geteuid() == 0:
        os.chown(live(stack) / "privkey.pem", 0, 0)
    repaired = run(stack, "--diff").succeeded()
    assert repaired.changed == 1
    assert served(stack) == certificate

    key = (live(stack) / "privkey.pem").resolve()
    key.unlink()
    key.write_text(issue("localhost").key_pem())
    done = run(stack, "--diff").succeeded()
    assert "the private key does not belong to the certificate" in " ".join(done.output.split())
    assert served(stack) != certificate


def test_provided(stack: Path, tmp_path: Path) -> None:
    """CS-9: installed as given, once; replaced together; a vaulted key; stapling if it can."""
    root = issue("Root", authority=True)
    middle = issue("Middle", authority=True, by=root)
    leaf = issue("localhost", by=middle, ocsp=True)
    pair = leaf.save(tmp_path / "one", middle)

    checked = provided(stack, pair, "--check", "--diff").succeeded()
    assert checked.changed == 1
    assert '"ocsp": true' in checked.output
    assert not stack.exists()

    first = provided(stack, pair, "--diff").succeeded()
    assert reloads(first)
    assert served(stack) == leaf.certificate
    assert (live(stack) / "fullchain.pem").read_text() == leaf.pem + middle.pem
    again = provided(stack, pair).succeeded()
    assert (again.changed, again.executions) == (0, 1)

    other = issue("localhost", days=10)
    pair = other.save(tmp_path / "two")
    password = tmp_path / "vault-password"
    password.write_text("open sesame\n")
    vault = ["--vault-password-file", str(password)]
    subprocess.run(
        [Path(sys.executable).parent / "ansible-vault", "encrypt", *vault, pair[1]], check=True
    )
    second = provided(stack, pair, *vault, "--diff", "-vvv").succeeded()
    assert "PRIVATE KEY" not in second.output
    assert '"ocsp": false' in second.output
    assert "in 9 days: replace it" in " ".join(second.output.split())
    assert served(stack) == other.certificate

    # Back to the local authority: what is live is not its own.
    selfsigned = run(stack).succeeded()
    assert reloads(selfsigned)
    assert (live(stack) / "ca.pem").exists()
    provided(stack, leaf.save(tmp_path / "one", middle)).succeeded()
    assert not (live(stack) / "ca.pem").exists()


def test_what_clients_would_refuse_is_refused_first(stack: Path, tmp_path: Path) -> None:
    """CS-9: bad input each with its message, on the controller, before anything changes."""
    name = "www.example.org"
    root = issue("Root", authority=True)
    middle = issue("Middle", authority=True, by=root)
    good = issue(name, by=middle)
    encrypted = tmp_path / "encrypted.pem"
    encrypted.write_text(good.key_pem(b"passphrase"))
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    binary = tmp_path / "binary.pem"
    binary.write_bytes(bytes(range(256)))
    empty = tmp_path / "empty.pem"
    empty.write_text("")
    fitting = good.save(tmp_path / "good", middle, root)
    reversed_pem = tmp_path / "reversed.pem"
    reversed_pem.write_text(middle.pem + good.pem)
    files: dict[str, tuple[tuple[str, str], str]] = {
        "good": (fitting, "passed"),
        "wildcard": (issue("*.example.org").save(tmp_path / "wildcard"), "passed"),
        "unset": (("", ""), "set tls_certificate_file and tls_private_key_file"),
        "missing": (
            (fitting[0], "/nonexistent.key"),
            "/nonexistent.key does not exist on the controller",
        ),
        "directory": ((str(tmp_path), fitting[1]), "cannot be read on the controller"),
        "binary": ((str(binary), fitting[1]), "binary.pem holds no certificate in PEM form"),
        "garbage": ((str(garbage), fitting[1]), "holds a certificate that cannot be parsed"),
        "empty": ((str(empty), str(empty)), "empty.pem holds no private key in PEM form"),
        "swapped": ((fitting[1], fitting[0]), "key.pem holds no certificate in PEM form"),
        "passphrase": ((fitting[0], str(encrypted)), "is protected by a passphrase"),
        "mismatch": (
            (fitting[0], issue(name).save(tmp_path / "other")[1]),
            "the private key does not belong to the certificate",
        ),
        "order": (
            (str(reversed_pem), fitting[1]),
            "the server's own certificate must come first",
        ),
        "gap": (
            good.save(tmp_path / "gap", root),
            "certificate 1 of the file was not issued by the one after it (CN=Root)",
        ),
        "expired": (issue(name, since=-30, days=-3).save(tmp_path / "expired"), "expired on 20"),
        "early": (issue(name, since=3).save(tmp_path / "early"), "is not valid before 20"),
        "names": (
            issue("example.org", "*.a.example.org").save(tmp_path / "names"),
            "the certificate is for example.org, *.a.example.org, not for www.example.org",
        ),
        "weak": (issue(name, key=weak()).save(tmp_path / "weak"), "the RSA key has 1024 bits"),
    }
    cases: dict[str, dict[str, Any]] = {
        case: {"certificate": pair[0], "key": pair[1]} for case, (pair, _) in files.items()
    }
    expected = {case: message for case, (_, message) in files.items()}
    for case, settings, message in (
        ("name", {"names": ["münchen.example"]}, "stack_server_names must list host names"),
        ("url", {"names": ["https://www.example.org"]}, "stack_server_names must list host names"),
        ("none", {"names": []}, "stack_server_names must list host names"),
        ("long", {"tls_valid_days": 398}, "tls_valid_days must be 1 to 397"),
        (
            "mode",
            {"tls_mode": "letsencrypt"},
            "tls_mode must be one of: selfsigned, provided, acme",
        ),
        ("addresses", {"names": ["10.0.0.1", "fd00::1", "*.x.test"]}, "passed"),
    ):
        cases[case] = {"tls_mode": "selfsigned", **settings}
        expected[case] = message

    done = playbook(
        "localhost,",
        name="../tests/roles/tls/refusals.yml",
        variables={"ansible_connection": "local", "stack_dir": str(stack), "cases": cases},
        seconds=120,
    ).succeeded()
    assert done.executions == 0
    encoded = re.search(r"SAID=([^!]+)!", done.output)
    assert encoded, done.output
    said = json.loads(base64.b64decode("".join(encoded.group(1).split())))
    wrong = {case: said[case] for case in expected if expected[case] not in said[case]}
    assert not wrong
    assert not stack.exists()

    # The role itself refuses the same, should nobody have asked earlier.
    pair = files["mismatch"][0]
    refused = provided(stack, pair, names=(name,)).failed()
    assert "the private key does not belong to the certificate" in " ".join(refused.output.split())
    assert not stack.exists()


class Crash(BaseException):
    """A run that is killed."""


def test_a_killed_run_never_leaves_a_mismatched_pair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CS-9: killed before any of its steps, the live pair is the old one or the new one."""
    store = certificate_store.Store(tmp_path / "tls", os.geteuid(), check_mode=False)
    store.prepare()

    def contents(pair: Issued) -> dict[str, str]:
        return {"fullchain.pem": pair.pem, "privkey.pem": pair.key_pem()}

    old = issue("localhost")
    store.install(contents(old))
    survived = 0
    for step in range(100):
        new = issue("localhost")
        left = [step]

        def count(original: Any, left: list[int] = left) -> Any:
            def counted(*arguments: Any, **options: Any) -> Any:
                left[0] -= 1
                if left[0] < 0:
                    raise Crash
                return original(*arguments, **options)

            return counted

        with monkeypatch.context() as patch:
            for place, attribute in (
                (os, "fsync"),
                (os, "open"),
                (os, "fchown"),
                (Path, "replace"),
                (Path, "symlink_to"),
                (Path, "mkdir"),
            ):
                patch.setattr(place, attribute, count(getattr(place, attribute)))
            try:
                store.install(contents(new))
                finished = True
            except Crash:
                survived += 1
                finished = False
        pair = store.pair()
        assert certificates.fits(pair.leaf, pair.key)
        assert pair.leaf in (old.certificate, new.certificate)
        if finished:
            assert pair.leaf == new.certificate
            break
        old = issue("localhost") if pair.leaf == new.certificate else old
        store.install(contents(old))
        assert store.pair().leaf == old.certificate
    assert survived > 10


def test_readers_meet_one_pair_while_it_changes(tmp_path: Path) -> None:
    """CS-9: what `current` leads to is a pair at any moment, and the mounted directory stays."""
    store = certificate_store.Store(tmp_path / "tls", os.geteuid(), check_mode=False)
    store.prepare()
    pairs = [issue("localhost") for _ in range(4)]
    contents = [{"fullchain.pem": p.pem, "privkey.pem": p.key_pem()} for p in pairs]
    store.install(contents[0])
    inode = store.live.stat().st_ino
    known = {c["fullchain.pem"]: c["privkey.pem"] for c in contents}
    stop = threading.Event()
    torn: list[str] = []
    met: set[str] = set()

    def read() -> None:
        while not stop.is_set():
            try:
                led_to = (store.live / "current").readlink()
            except FileNotFoundError:
                torn.append("no pair at all")
                continue
            try:
                directory = os.open(store.live / led_to, os.O_RDONLY)
            except FileNotFoundError:
                if (store.live / "current").readlink() == led_to:
                    torn.append("leads nowhere")
                continue  # pruned, after two more were installed
            try:
                texts = []
                for name in ("fullchain.pem", "privkey.pem"):
                    with os.fdopen(os.open(name, os.O_RDONLY, dir_fd=directory)) as stream:
                        texts.append(stream.read())
            except FileNotFoundError:
                continue  # replaced and pruned meanwhile: a server would try again
            finally:
                os.close(directory)
            met.add(texts[0])
            if known[texts[0]] != texts[1]:
                torn.append("mismatch")

    thread = threading.Thread(target=read)
    thread.start()
    for round_ in range(60):
        store.install(contents[round_ % 4])
    stop.set()
    thread.join()
    assert not torn
    assert len(met) > 1
    assert store.live.stat().st_ino == inode


@pytest.mark.parametrize(
    ("offered", "wanted", "fits"),
    [
        ("a.test", "A.TEST", True),
        ("*.b.test", "x.b.test", True),
        ("*.b.test", "b.test", False),
        ("*.b.test", "y.x.b.test", False),
        ("*.b.test", "*.b.test", True),
        ("10.0.0.1", "10.0.0.1", True),
        ("fd00::1", "FD00:0::1", True),
        ("10.0.0.1", "10.0.0.2", False),
        ("*.0.0.1", "10.0.0.1", False),
    ],
)
def test_covers(offered: str, wanted: str, *, fits: bool) -> None:
    """CS-9: names are matched as clients match them."""
    assert certificates.covers(issue(offered).certificate, wanted) is fits
