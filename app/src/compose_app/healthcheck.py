"""Asks this container's own gunicorn for its health; standard library only, for it runs often."""

from __future__ import annotations

import os
import socket
import sys

TIMEOUT = 5.0
"""Seconds; /health itself answers within 3."""


def main() -> int:
    """Return 0 when GET /health answers 200, else 1 with the reason on standard error."""
    record = os.path.join(os.environ.get("API_RUN_DIR") or "/tmp", "compose-app.socket")  # noqa: PTH118, S108
    try:
        with open(record, encoding="utf-8") as file:  # noqa: PTH123
            path = file.read()
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(TIMEOUT)
            connection.connect(path)
            connection.sendall(b"GET /health HTTP/1.0\r\nHost: localhost\r\n\r\n")
            answer = b""
            while part := connection.recv(4096):
                answer += part
    except OSError as error:
        print(f"unhealthy: {error}", file=sys.stderr)
        return 1
    head, _, body = answer.partition(b"\r\n\r\n")
    status = head.split(b" ", 2)[1:2]
    print(body.decode(errors="replace"), file=sys.stderr)
    return 0 if status == [b"200"] else 1
