"""Probes of the public address, as a client sees it, and what came of them."""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path


class Address(NamedTuple):
    """A public HTTPS address: where to connect, and whom to ask for there."""

    host: str
    port: int
    name: str
    path: str
    ca_path: str | None = None
    """Certificate authority to check against; None accepts any certificate."""


class PublicConnection(http.client.HTTPSConnection):
    """A connection to an address that is asked for under another name."""

    def __init__(self, address: Address, timeout: float) -> None:
        context = ssl.create_default_context(cafile=address.ca_path)
        if address.ca_path is None:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        super().__init__(address.host, address.port, timeout=timeout, context=context)
        self._name = address.name
        self._tls = context

    def connect(self) -> None:
        """Connect to the host, with the name in the handshake."""
        plain = socket.create_connection((self.host, self.port), self.timeout)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = self._tls.wrap_socket(plain, server_hostname=self._name)


class SocketConnection(http.client.HTTPConnection):
    """A connection to a unix socket."""

    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def ask(connection: http.client.HTTPConnection, path: str, host: str) -> tuple[int, bytes]:
    """Return status and body of a GET.

    Raises:
        OSError, http.client.HTTPException: nothing came, or nothing sensible.
    """
    connection.request("GET", path, headers={"Host": host, "Accept": "application/json"})
    answer = connection.getresponse()
    return answer.status, answer.read()


@dataclass
class Receipt:
    """What was sent, what failed, and how long answers took (milliseconds)."""

    sent: int = 0
    failures: list[str] = field(default_factory=list)
    times_ms: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """The receipt as it is kept."""
        ordered = sorted(self.times_ms)
        return {
            "sent": self.sent,
            "failed": len(self.failures),
            "slowest_ms": round(ordered[-1], 1) if ordered else None,
            "median_ms": round(ordered[len(ordered) // 2], 1) if ordered else None,
            "failures": self.failures[:10],
        }


class Prober:
    """Asks the public address at a steady pace until it is stopped.

    Half of the probes share a connection each thread keeps, half open one of their own: the first
    notice a reset, the second a listener that is gone. A probe is sent when its time has come,
    whether or not the one before has been answered, so that a stall is met by as many probes as
    fall into it (an open loop).
    """

    def __init__(self, address: Address, per_second: float, timeout: float = 5) -> None:
        self._address = address
        self._every = 1 / per_second
        self._timeout = timeout
        self._receipts: list[Receipt] = [Receipt()]
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._pace = threading.Thread(target=self._send, daemon=True)
        self._under_way: list[threading.Thread] = []

    def start(self) -> None:
        """Begin to ask."""
        self._pace.start()

    def next_phase(self) -> bool:
        """Count what is sent from now on apart; tell whether most answers so far were failures."""
        with self._lock:
            over = self._receipts[-1]
            self._receipts.append(Receipt())
            return len(over.failures) > len(over.times_ms)

    def failures(self) -> list[str]:
        """What has failed so far of this phase's probes."""
        with self._lock:
            return list(self._receipts[-1].failures)

    def stop(self) -> list[Receipt]:
        """Wait for the answers still due; return the receipt of each phase."""
        self._stop.set()
        self._pace.join()
        for thread in self._under_way:
            thread.join()
        return self._receipts

    def _send(self) -> None:
        due = time.monotonic()
        kept: list[http.client.HTTPConnection] = []
        turn = 0
        while not self._stop.wait(max(0.0, due - time.monotonic())):
            with self._lock:
                receipt = self._receipts[-1]
                receipt.sent += 1
            thread = threading.Thread(
                target=self._probe, args=(receipt, kept if turn % 2 else None), daemon=True
            )
            thread.start()
            self._under_way = [item for item in self._under_way if item.is_alive()] + [thread]
            due += self._every
            turn += 1
        for thread in self._under_way:
            thread.join()
        for connection in kept:
            connection.close()

    def _probe(self, receipt: Receipt, kept: list[http.client.HTTPConnection] | None) -> None:
        began = time.monotonic()
        with self._lock:
            connection = kept.pop() if kept else None
        try:
            connection = connection or PublicConnection(self._address, self._timeout)
            status, _ = ask(connection, self._address.path, self._address.name)
        except (OSError, http.client.HTTPException) as error:
            if connection:
                connection.close()
            self._fail(receipt, f"{type(error).__name__}: {error}".rstrip(": "))
            return
        if kept is None:
            connection.close()
        else:
            with self._lock:
                kept.append(connection)
        if status == http.HTTPStatus.OK:
            with self._lock:
                receipt.times_ms.append((time.monotonic() - began) * 1000)
        else:
            self._fail(receipt, f"HTTP {status}")

    def _fail(self, receipt: Receipt, why: str) -> None:
        with self._lock:
            receipt.failures.append(why)
