"""What nginx tells the application about a request, and where it sends one that came in the clear.

The real image and the rendered configuration, before a program that answers with what it was told.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import re
import shutil
import socketserver
import ssl
import tempfile
import threading
import uuid
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.harness import Site, playbook, wait_for
from tests.images.conftest import PREFIX, docker, logs
from tests.public import MODERN, WEAK
from tests.roles.tls.authority import issue

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.docker

NAMES = ["www.a.test", "*.a.test"]
FORGED = "192.0.2.1"
CONF = "/etc/compose-stack/current/config/nginx.conf"


class Echo(http.server.BaseHTTPRequestHandler):
    """Answers with the header that it was sent."""

    def do_GET(self) -> None:
        body = json.dumps(self.headers.items()).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        # The one inherited takes the client for an address and a port.
        pass


class Sockets(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


@contextlib.contextmanager
def echoing(path: Path) -> Iterator[None]:
    with Sockets(str(path), Echo) as server:
        path.chmod(0o666)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


# Answers as Grafana would: with the path it was asked for, and headers of its own.
GRAFANA = """
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Security-Policy", "script-src 'self' 'nonce-x'")
        self.send_header("X-Frame-Options", "deny")
        self.end_headers()
        self.wfile.write(f"{self.path} {self.headers['X-Forwarded-Proto']}".encode())
http.server.ThreadingHTTPServer(("", 3000), Handler).serve_forever()
"""


@dataclass(frozen=True)
class Proxy:
    """A running nginx."""

    name: str
    site: Site

    def told(self, host: str = "www.a.test", **headers: str) -> dict[str, str]:
        """The header that the application gets; each name is there once."""
        answer = self.site.get("/echo", headers={"Host": host, **headers})
        assert answer.status_code == 200, answer.text
        found: list[list[str]] = answer.json()
        names = [name.lower() for name, _ in found]
        assert len(names) == len(set(names)), names
        return {name.lower(): value for name, value in found}

    def logged(self, request_id: str) -> dict[str, Any]:
        """nginx's own record of a request."""

        def line() -> str | None:
            return next((text for text in logs(self.name).splitlines() if request_id in text), None)

        return dict(json.loads(wait_for("a line in the log", line, 5)))


@pytest.fixture(scope="module")
def proxy(distro: dict[str, str]) -> Iterator[Proxy]:
    scratch = Path(tempfile.mkdtemp(prefix="nginx-"))  # short: a socket's path has 108 bytes
    name = f"{PREFIX}-nginx-{uuid.uuid4().hex[:8]}"
    variables = {
        "contract_dir": str(scratch),
        "stack_services": ["nginx", "grafana"],
        "stack_profiles": ["monitoring"],
        "stack_server_names": NAMES,
        "api_scale": 1,
    }
    try:
        render = "../tests/contract/render.yml"
        playbook("inventories/production", name=render, variables=variables).succeeded()
        authority = issue("authority.test", authority=True)
        (scratch / "tls").mkdir()
        # RSA, which the stack's own authority does not use: it is what the oldest suites want.
        key = rsa.generate_private_key(65537, 2048)
        issued = issue(*NAMES, by=authority, key=key)
        (scratch / "tls" / "fullchain.pem").write_text(issued.pem)
        (scratch / "tls" / "privkey.pem").write_text(issued.key_pem())
        (scratch / "ca.pem").write_text(authority.pem)
        (scratch / "run" / "blue").mkdir(parents=True)
        (scratch / "run" / "active").symlink_to("blue")
        # Docker's DNS answers on networks with a name only.
        docker("network", "create", name)
        docker(
            "run", "--detach", "--rm", f"--name={name}", f"--network={name}",
            "--read-only", "--tmpfs=/tmp:mode=1777",
            "--cap-drop=ALL", "--security-opt=no-new-privileges", "--memory=128m",
            "--publish=127.0.0.1::8080", "--publish=127.0.0.1::8443",
            f"--volume={scratch}/nginx:/etc/compose-stack:ro",
            f"--volume={scratch}/tls:/etc/tls:ro", f"--volume={scratch}/run:/run/sockets:ro",
            "--entrypoint=nginx", distro["nginx"], "-c", CONF,
        )  # fmt: skip
        http_port, https_port = (
            int(docker("port", name, port).splitlines()[0].rpartition(":")[2])
            for port in ("8080/tcp", "8443/tcp")
        )
        site = Site("127.0.0.1", https_port, http_port, "www.a.test", scratch / "ca.pem")
        with echoing(scratch / "run" / "blue" / "api-1.sock"):
            wait_for("nginx", site.answers, 20)
            yield Proxy(name, site)
    finally:
        docker("rm", "--force", "--volumes", name, check=False)
        docker("network", "rm", name, check=False)
        shutil.rmtree(scratch)


def test_the_client_is_named(proxy: Proxy) -> None:
    """CS-8: by the address that it connects from, whatever it says of itself."""
    sent = uuid.uuid4().hex
    told = proxy.told(
        **{
            "X-Request-ID": sent,
            "X-Real-IP": FORGED,
            "X-Forwarded-For": f"{FORGED}, 192.0.2.2",
            "X-Forwarded-Proto": "http",
        }
    )
    client = proxy.logged(sent)["client"]
    assert re.fullmatch(r"\d+\.\d+\.\d+\.\d+", client)
    assert client != FORGED
    assert told["x-real-ip"] == client
    assert told["x-forwarded-for"] == client
    assert told["x-forwarded-proto"] == "https"


def test_the_request_is_named(proxy: Proxy) -> None:
    """CS-8: the same for the client, nginx's log and the application."""
    for sent in ("0123abcd", uuid.uuid4().hex):
        assert proxy.told(**{"X-Request-ID": sent})["x-request-id"] == sent
    for odd in ("short", "a" * 65, 'quote"12345'):
        made = proxy.told(**{"X-Request-ID": odd})["x-request-id"]
        assert re.fullmatch(r"[0-9a-f]{32}", made), odd
        assert proxy.logged(made)["uri"] == "/echo"
    answer = proxy.site.get("/echo")
    assert answer.headers["X-Request-ID"] == dict(answer.json())["X-Request-ID"]


def test_the_name_asked_for_is_passed_on(proxy: Proxy) -> None:
    """CS-8: with the port, so that addresses the application writes lead back to it."""
    for host in ("www.a.test", "x.a.test", "www.a.test:8443"):
        assert proxy.told(host)["host"] == host


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("www.a.test", "www.a.test"),
        ("x.a.test", "x.a.test"),
        ("a.b.a.test", "a.b.a.test"),
        ("a.test", "www.a.test"),
        ("x.a.test.evil.example", "www.a.test"),
        ("evil.example", "www.a.test"),
        ("xa.test", "www.a.test"),
    ],
)
def test_redirects_keep_only_names_of_ours(proxy: Proxy, host: str, name: str) -> None:
    """CS-9: a name that the wildcard covers is one of ours."""
    answer = proxy.site.plain("/p?q=1", Host=host)
    assert answer.status_code == 301
    assert answer.headers["Location"] == f"https://{name}/p?q=1"


@pytest.mark.parametrize("suites", WEAK.values(), ids=WEAK)
def test_weak_suites_are_refused(proxy: Proxy, suites: str) -> None:
    """CS-9: with a certificate for which each of them would do."""
    assert proxy.site.handshake(ssl.TLSVersion.TLSv1_2, MODERN) == "TLSv1.2"
    with pytest.raises(ssl.SSLError, match="alert handshake failure"):
        proxy.site.handshake(ssl.TLSVersion.TLSv1_2, suites)


@contextlib.contextmanager
def grafana(proxy: Proxy, image: str, *options: str) -> Iterator[None]:
    """Something on nginx' network that is called grafana."""
    name = f"{proxy.name}-grafana"
    docker(
        "run", "--detach", "--rm", f"--name={name}", f"--network={proxy.name}",
        "--network-alias=grafana", "--init", *options, "--entrypoint=python3", image,
        "-c", dedent(GRAFANA),
    )  # fmt: skip
    try:
        wait_for("grafana", lambda: proxy.site.get("/grafana/").status_code == 200, 30)
        yield
    finally:
        docker("rm", "--force", name, check=False)


def test_nginx_does_without_grafana(proxy: Proxy, distro: dict[str, str]) -> None:
    """CS-11: it started without, goes on without, and finds it again at another address."""
    assert proxy.site.get("/grafana/").status_code == 503
    assert proxy.told()
    with grafana(proxy, distro["api"]):
        assert proxy.site.get("/grafana/").status_code == 200
    assert proxy.told()
    neighbour = f"{proxy.name}-neighbour"
    docker(
        "run", "--detach", "--rm", f"--name={neighbour}", f"--network={proxy.name}", "--init",
        "--entrypoint=sleep", distro["api"], "60",
    )  # fmt: skip
    try:
        with grafana(proxy, distro["api"]):
            assert proxy.site.get("/grafana/").status_code == 200
    finally:
        docker("rm", "--force", neighbour, check=False)


def test_grafana_is_below_its_path(proxy: Proxy, distro: dict[str, str]) -> None:
    """CS-9, CS-11: the path as it is asked for, Grafana's own policy, everything said once."""
    with grafana(proxy, distro["api"]):
        answer = proxy.site.get("/grafana/d/api?from=now-1h")
        assert answer.text == "/grafana/d/api?from=now-1h https"
        assert answer.headers["Content-Security-Policy"] == "script-src 'self' 'nonce-x'"
        assert answer.headers["X-Frame-Options"] == "DENY"
        assert answer.headers["Strict-Transport-Security"]
        assert proxy.site.get("/grafana").headers["Location"] == "/grafana/"
        assert proxy.site.get("/grafana/metrics").status_code == 404
        assert "default-src" in proxy.site.get("/echo").headers["Content-Security-Policy"]


def test_only_signing_in_to_grafana_is_limited(proxy: Proxy, distro: dict[str, str]) -> None:
    """CS-8: a page takes dozens of requests; guessing passwords takes many, too."""
    with grafana(proxy, distro["api"]):
        assert {proxy.site.get("/grafana/x").status_code for _ in range(60)} == {200}
        assert 429 in {proxy.site.get("/grafana/login").status_code for _ in range(60)}
