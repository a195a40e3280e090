"""/api/usage, which the query service answers."""

from __future__ import annotations

from flask import Response
from flask_openapi3 import Tag

from compose_app import errors
from compose_app.errors import ProblemError
from compose_app.openapi import Blueprint, json_response, problems
from compose_app.usage.rollups import RollupReader
from compose_app.usage.schemas import BucketPage, UsageQuery, bucket_cursor


def blueprint(reader: RollupReader) -> Blueprint:
    """The operations that read usage."""
    api = Blueprint("usage-queries", __name__, abp_tags=[Tag(name="usage")])

    @api.get(
        "/api/usage",
        operation_id="listUsage",
        summary="Usage by minute, hour or day",
        responses={200: BucketPage, **problems(errors.INVALID, errors.UNAVAILABLE)},
    )
    def list_usage(query: UsageQuery) -> Response:
        """Buckets in which something was used, in order of metric and time.

        An event is in them seconds after it was accepted, and however late it was. Minutes and
        hours are kept for a limited time.
        """
        try:
            between = query.between
        except OverflowError:
            fault = {"location": ["query", "to"], "message": "must be a day later, without `from`"}
            raise ProblemError(errors.INVALID, "The query is not valid.", [fault]) from None
        as_of = reader.as_of()  # before the buckets: they hold at least that
        rows = reader.page(
            query.bucket, query.tenant, query.metric, between, query.cursor, query.limit + 1
        )
        more = len(rows) > query.limit
        rows = rows[: query.limit]
        last = rows[-1] if more else None
        return json_response(
            {
                "buckets": rows,
                "next_cursor": bucket_cursor(last["metric"], last["bucket"]) if last else None,
                "as_of": as_of,
            }
        )

    return api
