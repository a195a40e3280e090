"""The email service: one HTTP request a message.

It is asked to send each message once, whatever is repeated, by the header `Idempotency-Key`
(draft-ietf-httpapi-idempotency-key-header): who has no answer cannot know whether it was sent.
"""

from __future__ import annotations

import time

import urllib3

CONNECT_TIMEOUT = 2.0
"""Seconds to connect."""
_ANSWER = 65_536
"""Bytes of an answer that are read so that the connection can be used again."""
# 409: an attempt before is still under way there.
_LATER = frozenset({408, 409, 425, 429})


class Refused(Exception):
    """The service will not send this message, now or later."""


class Failed(Exception):
    """The service has not sent the message, or has not said so; it may later."""

    def __init__(self, reason: str, after: float = 0.0) -> None:
        """Take the seconds the service asks to be left alone for."""
        super().__init__(reason)
        self.after = after


class EmailService:
    """A client, for several threads at once."""

    def __init__(self, url: str, token: str | None, timeout: float, connections: int) -> None:
        """Take where messages are posted to, and the seconds an answer may take."""
        self._url = url
        self._timeout = timeout
        self._headers = {"Content-Type": "application/json", "User-Agent": "compose-app"}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        self._pool = urllib3.PoolManager(maxsize=connections, retries=False)

    def send(self, key: str, to: str, subject: str, text: str) -> None:
        """Have a message sent.

        Args:
            key: the same for all attempts at this message, and for no other one.
            to: address.
            subject: one line.
            text: plain text.

        Raises:
            Refused: an answer of 4xx, but for those that ask to come again.
            Failed: any other answer but 2xx, or none in time.
        """
        deadline = time.monotonic() + self._timeout
        try:
            response = self._pool.request(
                "POST",
                self._url,
                json={"to": to, "subject": subject, "text": text},
                headers={**self._headers, "Idempotency-Key": key},
                timeout=urllib3.Timeout(connect=CONNECT_TIMEOUT, total=self._timeout),
                redirect=False,
                preload_content=False,
            )
        except urllib3.exceptions.HTTPError as error:
            raise Failed(f"no answer: {error}") from error
        _read(response, deadline)
        status = response.status
        if 200 <= status < 300:
            return
        if 400 <= status < 500 and status not in _LATER:
            raise Refused(f"the email service answered {status}")
        raise Failed(f"the email service answered {status}", _retry_after(response))

    def close(self) -> None:
        """Close the connections."""
        self._pool.clear()


def _read(response: urllib3.BaseHTTPResponse, deadline: float) -> None:
    """Read the answer to its end, for the next request's sake; the status has said it all."""
    left = _ANSWER
    try:
        while left > 0 and time.monotonic() < deadline and (part := response.read1(left)):
            left -= len(part)
    except urllib3.exceptions.HTTPError:
        pass
    else:
        if left > 0 and time.monotonic() < deadline:
            response.release_conn()
            return
    response.close()


def _retry_after(response: urllib3.BaseHTTPResponse) -> float:
    value = response.headers.get("Retry-After", "")
    return float(value) if value.isdecimal() else 0.0
