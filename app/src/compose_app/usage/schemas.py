"""What usage events look like from outside."""

from __future__ import annotations

import datetime
import re
import zlib
from typing import Annotated, Any, Literal

from flask import request
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from werkzeug.exceptions import RequestEntityTooLarge

from compose_app import errors
from compose_app.cursor import decode_text, encode_text
from compose_app.errors import ProblemError
from compose_app.fields import Decimal
from compose_app.openapi import parse_json

MAX_EVENTS = 10_000
MAX_BYTES = 8 * 1024 * 1024
"""Of a body that is unpacked; on the way it is MAX_BODY at most, as any other."""
MAX_QUANTITY = 1_000_000_000
AHEAD = datetime.timedelta(hours=1)
"""How far a client's clock may be ahead of ours."""
NDJSON = "application/x-ndjson"
_DECIMALS = 6
MAX_BUCKETS = 1000
# fromisoformat() would also take what has no offset, and local time for it.
_RFC3339 = re.compile(
    r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII
)


def _any_moment(value: object) -> datetime.datetime:
    if not isinstance(value, str) or not _RFC3339.fullmatch(value):
        raise ValueError("must be a moment such as 2026-01-31T12:00:00Z")
    try:
        return datetime.datetime.fromisoformat(value).astimezone(datetime.UTC)
    except (ValueError, OverflowError):
        raise ValueError("must be a moment such as 2026-01-31T12:00:00Z") from None


def _moment(value: object) -> datetime.datetime:
    moment = _any_moment(value)
    if moment > datetime.datetime.now(datetime.UTC) + AHEAD:
        raise ValueError("must not be more than an hour in the future")
    return moment


def _quantity(value: object) -> float | int:
    number = value if isinstance(value, (int, float)) and not isinstance(value, bool) else -1
    if not 0 <= number <= MAX_QUANTITY:
        raise ValueError(f"must be a number from 0 to {MAX_QUANTITY}")
    if round(number, _DECIMALS) != number:
        raise ValueError(f"must have no more than {_DECIMALS} decimals")
    return number


_Id = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]+$")]
_LABEL = r"^[A-Za-z0-9][A-Za-z0-9._:-]*$"
_Label = Annotated[str, Field(min_length=1, max_length=64, pattern=_LABEL)]


class Event(BaseModel):
    """One use of something."""

    model_config = ConfigDict(strict=True, extra="forbid")

    event_id: _Id = Field(
        description="Chosen by the client, unique for the tenant: whatever is sent again under the "
        "same id counts once.",
        examples=["3f0c9d1e-5b7a-4c2d-8e6f-1a2b3c4d5e6f"],
    )
    tenant: _Label = Field(description="Who used it.", examples=["acme"])
    metric: _Label = Field(description="What was used.", examples=["requests"])
    quantity: Annotated[
        float | int,
        BeforeValidator(_quantity),
        Field(
            description="How much of it, up to six decimals.",
            json_schema_extra={"minimum": 0, "maximum": MAX_QUANTITY},
            examples=[1],
        ),
    ]
    time: Annotated[
        datetime.datetime,
        BeforeValidator(_moment),
        Field(
            description="When, RFC 3339 with an offset: no longer ago than late events are taken, "
            "35 days by default, and no more than an hour ahead. It belongs to the event: it stays "
            "the same when the event is sent again.",
            examples=["2026-01-31T12:00:00Z"],
        ),
    ]


_ONE = {"$ref": "#/components/schemas/Event"}
_MANY = {
    "type": "object",
    "required": ["events"],
    "additionalProperties": False,
    "properties": {
        "events": {"type": "array", "minItems": 1, "maxItems": MAX_EVENTS, "items": _ONE}
    },
}


class EventsIn(BaseModel):
    """Events in the order given."""

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        openapi_extra={  # type: ignore[typeddict-unknown-key]
            "description": "One event, or an object with `events`; or events as NDJSON, one a "
            "line. `Content-Encoding: gzip` is understood: many events fit into 1 MiB only so.",
            "content": {
                "application/json": {"schema": {"anyOf": [_ONE, _MANY]}},
                NDJSON: {"schema": {"type": "string"}},
            },
        },
    )

    events: list[Event] = Field(min_length=1, max_length=MAX_EVENTS)

    @staticmethod
    def read() -> Any:
        """The body of the request at hand, whichever form it has, as that of many events.

        Raises:
            ProblemError: 415 for another content type or encoding, 400 for what is not JSON.
            werkzeug.exceptions.RequestEntityTooLarge: more than MAX_BODY bytes, more than
                MAX_BYTES unpacked, or more than MAX_EVENTS lines.
        """
        if request.mimetype == "application/json":
            value = parse_json(_unpacked())
            return value if isinstance(value, dict) and "events" in value else {"events": [value]}
        if request.mimetype == NDJSON:
            lines = [line for line in _unpacked().split(b"\n") if line.strip()]
            if len(lines) > MAX_EVENTS:
                raise RequestEntityTooLarge(f"More than {MAX_EVENTS} events.")
            return {"events": [parse_json(line, place) for place, line in enumerate(lines, 1)]}
        raise ProblemError(errors.UNSUPPORTED, f"Send application/json or {NDJSON}.")


def _unpacked() -> bytes:
    body = request.get_data(cache=False)
    if request.content_encoding in (None, "identity"):
        return body
    if request.content_encoding != "gzip":
        raise ProblemError(errors.UNSUPPORTED, "Content-Encoding must be gzip, or absent.")
    unpacker = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    try:
        unpacked = unpacker.decompress(body, MAX_BYTES + 1)
    except zlib.error:
        raise ProblemError(errors.INVALID_JSON, "The body is not gzip.") from None
    if len(unpacked) > MAX_BYTES:
        raise RequestEntityTooLarge(f"The body unpacks to more than {MAX_BYTES} bytes.")
    if not unpacker.eof or unpacker.unused_data:
        raise ProblemError(errors.INVALID_JSON, "The body is not one whole gzip member.")
    return unpacked


class Accepted(BaseModel):
    """What has been queued."""

    accepted: int = Field(ge=1, le=MAX_EVENTS, description="Events, each id counted once.")


def _bucket_cursor(value: object) -> tuple[str, datetime.datetime]:
    seconds, _, metric = decode_text(str(value)).partition(" ")
    if not seconds.isdecimal() or not seconds.isascii() or not re.fullmatch(_LABEL, metric):
        raise ValueError("is not a cursor")
    try:
        return metric, datetime.datetime.fromtimestamp(int(seconds), datetime.UTC)
    except (ValueError, OverflowError, OSError):
        raise ValueError("is not a cursor") from None


def bucket_cursor(metric: str, bucket: datetime.datetime) -> str:
    """The cursor that the page after this bucket begins with."""
    return encode_text(f"{int(bucket.timestamp())} {metric}")


_Time = Annotated[
    datetime.datetime,
    BeforeValidator(_any_moment),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]
_START = ("", datetime.datetime.min.replace(tzinfo=datetime.UTC))


class UsageQuery(BaseModel):
    """Whose usage, of what, and when."""

    model_config = ConfigDict(extra="forbid")

    tenant: _Label = Field(description="Whose.")
    metric: _Label | None = Field(None, description="Of what; of everything, without.")
    bucket: Literal["minute", "hour", "day"] = Field(
        "hour", description="How long a bucket is. They are those of UTC."
    )
    since: _Time | None = Field(
        None,
        alias="from",
        description="First moment of the first bucket, RFC 3339 with an offset; a day before `to`, "
        "without.",
    )
    until: _Time | None = Field(
        None, alias="to", description="What every bucket begins before; now, without."
    )
    limit: Decimal = Field(100, ge=1, le=MAX_BUCKETS, description="Buckets a page.")
    cursor: Annotated[
        tuple[str, datetime.datetime],
        BeforeValidator(_bucket_cursor),
        WithJsonSchema({"type": "string", "maxLength": 128}),
    ] = Field(
        default_factory=lambda: _START, description="`next_cursor` of the page before. Opaque."
    )

    @property
    def between(self) -> tuple[datetime.datetime, datetime.datetime]:
        """From when, and to before when.

        Raises:
            OverflowError: a day before that, there were no years yet.
        """
        until = self.until or datetime.datetime.now(datetime.UTC)
        return self.since or until - datetime.timedelta(days=1), until


class Bucket(BaseModel):
    """Usage in a minute, an hour or a day."""

    metric: str
    bucket: datetime.datetime = Field(description="Its first moment, in UTC.")
    quantity: float = Field(ge=0)
    events: int = Field(ge=1)


class BucketPage(BaseModel):
    """Some buckets in order of metric and time, and where the next ones begin."""

    buckets: list[Bucket]
    next_cursor: str | None = Field(description="Cursor of the next page; null on the last.")
    as_of: datetime.datetime = Field(
        description="What had been counted by then is in the buckets; what came later may be."
    )
