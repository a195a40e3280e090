"""/api/usage/events."""

from __future__ import annotations

import datetime
from uuid import UUID

from flask import Response
from flask_openapi3 import Tag

from compose_app import errors
from compose_app.errors import ProblemError
from compose_app.openapi import Blueprint, json_response, problems
from compose_app.usage.queue import UsageQueue
from compose_app.usage.schemas import Accepted, Event, EventsIn
from compose_app.usage.store import content


def _content(event: Event) -> UUID:
    return content(event.metric, event.quantity, event.time)


def _each_once(events: list[Event]) -> list[Event]:
    """Without what is there twice.

    Raises:
        ProblemError: two events of one tenant have the same id and are not the same.
    """
    first: dict[tuple[str, str], Event] = {}
    faults = []
    for place, event in enumerate(events):
        before = first.setdefault((event.tenant, event.event_id), event)
        if before is not event and _content(before) != _content(event):
            faults.append(
                {
                    "location": ["body", "events", place, "event_id"],
                    "message": "is that of another event of the same tenant",
                }
            )
    if faults:
        raise ProblemError(
            errors.EVENT_ID_TAKEN, "Different events have the same id; none is queued.", faults
        )
    return list(first.values())


def _refuse_late(events: list[Event], days: int) -> None:
    earliest = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=days)
    faults = [
        {
            "location": ["body", "events", place, "time"],
            "message": f"must not be more than {days} days ago",
        }
        for place, event in enumerate(events)
        if event.time < earliest
    ]
    if faults:
        raise ProblemError(errors.INVALID, "The body is not valid.", faults)


def blueprint(queue: UsageQueue, late_days: int) -> Blueprint:
    """The operations on usage events, of which those late by more are refused."""
    api = Blueprint("usage", __name__, abp_tags=[Tag(name="usage")])

    @api.post(
        "/api/usage/events",
        operation_id="addUsageEvents",
        summary="Report usage",
        responses={
            202: Accepted,
            **problems(errors.EVENT_ID_TAKEN, *errors.OF_A_BODY),
        },
    )
    def add_usage_events(body: EventsIn) -> Response:
        """One event, or up to 10,000. They are on the disk when they are accepted.

        Counted soon afterwards, each once, however often it is sent. An event that differs from an
        earlier one with its id is set aside.
        """
        _refuse_late(body.events, late_days)
        events = _each_once(body.events)
        queue.add(
            [
                (event.event_id, event.tenant, event.metric, event.quantity, event.time)
                for event in events
            ]
        )
        return json_response({"accepted": len(events)}, 202)

    return api
