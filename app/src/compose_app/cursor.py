"""Opaque cursors: the key of the last entry of a page, with a version to tell other forms apart."""

from __future__ import annotations

import base64
import binascii
import struct

_FORM = struct.Struct(">BQ")
_VERSION = 1
_TEXT_VERSION = b"\x02"


def encode_text(last: str) -> str:
    """Write a cursor that is safe in a URL.

    Args:
        last: name of the last entry seen, not empty.
    """
    return base64.urlsafe_b64encode(_TEXT_VERSION + last.encode()).decode()


def decode_text(cursor: str) -> str:
    """Read a cursor back to the name it was written from.

    Raises:
        ValueError: `encode_text` never wrote this.
    """
    try:
        written = base64.b64decode(cursor, altchars=b"-_", validate=True)
        last = written[1:].decode()
    except ValueError:
        raise ValueError("is not a cursor") from None
    if written[:1] != _TEXT_VERSION or not last or "\0" in last or encode_text(last) != cursor:
        raise ValueError("is not a cursor")
    return last


def encode(last_id: int) -> str:
    """Write a cursor of 12 characters that are safe in a URL.

    Args:
        last_id: id of the last item seen, 1 to 2**63 - 1.
    """
    return base64.urlsafe_b64encode(_FORM.pack(_VERSION, last_id)).decode()


def decode(cursor: str) -> int:
    """Read a cursor back to the id it was written from.

    Raises:
        ValueError: `encode` never wrote this.
    """
    try:
        version, last_id = _FORM.unpack(base64.b64decode(cursor, altchars=b"-_", validate=True))
    except (binascii.Error, struct.error, ValueError):
        raise ValueError("is not a cursor") from None
    if version != _VERSION or not 1 <= last_id < 2**63:
        raise ValueError("is not a cursor")
    return int(last_id)
