"""What takes alerts, and what asks Prometheus: for the end-to-end tests and the proofs."""

from __future__ import annotations

import http.server
import json
import socketserver
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import requests

if TYPE_CHECKING:
    from tests.harness import Stack


@dataclass(frozen=True)
class Post:
    """What a receiver was sent, and when."""

    path: str
    body: dict[str, Any]
    at: float = field(default_factory=time.time)


class Receiver:
    """Takes what Alertmanager sends."""

    def __init__(self) -> None:
        self.posts: list[Post] = []
        self.refused: set[str] = set()
        """Paths that are answered 500."""
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self.path in receiver.refused:
                    self.send_error(500)
                    return
                receiver.posts.append(Post(self.path, body))
                self.send_response(200)
                self.end_headers()
                # Alertmanager takes nothing else from Slack for a success.
                self.wfile.write(b"ok")

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("0.0.0.0", 0), Handler)
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def alerts(self, path: str = "/alerts") -> list[dict[str, Any]]:
        """Every alert of every webhook, with the time at which it arrived."""
        return [
            {**alert, "at": post.at}
            for post in list(self.posts)
            if post.path == path
            for alert in post.body["alerts"]
        ]

    def named(self, name: str, status: str = "firing", path: str = "/alerts") -> dict[str, Any]:
        found = (
            alert
            for alert in self.alerts(path)
            if (alert["labels"]["alertname"], alert["status"]) == (name, status)
        )
        return next(found, {})


class MailServer:
    """Takes mail, as little of SMTP as Alertmanager speaks."""

    def __init__(self) -> None:
        self.mails: list[tuple[float, str]] = []
        server = self

        class Handler(socketserver.StreamRequestHandler):
            answers: ClassVar = {b"DATA": b"354 go on", b"QUIT": b"221 bye"}

            def handle(self) -> None:
                self.wfile.write(b"220 test\r\n")
                for line in self.rfile:
                    verb = line.strip().upper()[:4]
                    self.wfile.write(self.answers.get(verb, b"250 ok") + b"\r\n")
                    if verb == b"DATA":
                        text = b"".join(iter(self.rfile.readline, b".\r\n"))
                        server.mails.append((time.time(), text.decode()))
                        self.wfile.write(b"250 ok\r\n")
                    if verb == b"QUIT":
                        return

        self.server = socketserver.ThreadingTCPServer(("0.0.0.0", 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


class Prometheus:
    """Asked from the host, which reaches the containers of an internal network."""

    def __init__(self, stack: Stack) -> None:
        networks = stack.one("prometheus")["NetworkSettings"]["Networks"]
        address = networks[f"{stack.project}_monitoring"]["IPAddress"]
        self.url = f"http://{address}:9090/api/v1"

    def get(self, path: str, **params: str) -> Any:
        with requests.Session() as session:
            session.trust_env = False
            answer = session.get(f"{self.url}/{path}", params=params, timeout=10)
        assert answer.status_code == 200, f"{params}: {answer.text}"
        return answer.json()["data"]

    def query(self, expression: str) -> list[Any]:
        return list(self.get("query", query=expression)["result"])
