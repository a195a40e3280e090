"""/api/coupons."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from flask import Response
from flask_openapi3 import Tag

from compose_app import cursor, errors
from compose_app.coupons.schemas import (
    BatchIn,
    BatchOutcome,
    Claim,
    ClaimIn,
    Coupon,
    CouponIn,
    CouponList,
    CouponPage,
    CouponPath,
    CouponQuery,
)
from compose_app.coupons.store import (
    AlreadyClaimed,
    CouponStore,
    NameTaken,
    NoneLeft,
    NoSuchCoupon,
)
from compose_app.errors import ProblemError
from compose_app.fields import PageQuery
from compose_app.openapi import Blueprint, created, json_response, problems


def _not_found(name: str) -> ProblemError:
    return ProblemError(errors.COUPON_NOT_FOUND, f"There is no coupon {name!r}.")


def blueprint(store: CouponStore) -> Blueprint:
    """The operations on coupons."""
    api = Blueprint("coupons", __name__, abp_tags=[Tag(name="coupons")])

    @api.post(
        "/api/coupons",
        operation_id="createCoupon",
        summary="Create a coupon",
        responses={201: created(Coupon), **problems(errors.NAME_TAKEN, *errors.OF_A_BODY)},
    )
    def create_coupon(body: CouponIn) -> Response:
        try:
            row = store.create(body.name, body.amount)
        except NameTaken:
            raise ProblemError(
                errors.NAME_TAKEN,
                "Another coupon already has this name.",
                [{"location": ["body", "name"], "message": "is taken"}],
            ) from None
        location = f"/api/coupons/{quote(body.name, safe='')}"
        return json_response(row, 201, {"Location": location})

    @api.get(
        "/api/coupons",
        operation_id="listCoupons",
        summary="List coupons",
        responses={200: CouponList, **problems(errors.INVALID, errors.UNAVAILABLE)},
    )
    def list_coupons(query: CouponQuery) -> Response:
        """Coupons in order of their names. One that exists throughout is on exactly one page."""
        rows = store.page(query.cursor, query.limit + 1)
        more = len(rows) > query.limit
        rows = rows[: query.limit]
        following = cursor.encode_text(rows[-1]["name"]) if more else None
        return json_response({"coupons": rows, "next_cursor": following})

    @api.get(
        "/api/coupons/<name>",
        operation_id="getCoupon",
        summary="Get a coupon and who has claimed it",
        responses={
            200: CouponPage,
            **problems(errors.COUPON_NOT_FOUND, errors.INVALID, errors.UNAVAILABLE),
        },
    )
    def get_coupon(path: CouponPath, query: PageQuery) -> Response:
        """Claims in the order of their ids; what was granted before the first page is on one."""
        coupon = store.get(path.name)
        if coupon is None:
            raise _not_found(path.name)
        rows: list[dict[str, Any]] = store.claims(path.name, query.cursor, query.limit + 1)
        more = len(rows) > query.limit
        rows = rows[: query.limit]
        following = cursor.encode(rows[-1]["id"]) if more else None
        claims = [{"user_id": row["user_id"], "created_at": row["created_at"]} for row in rows]
        return json_response({**coupon, "claims": claims, "next_cursor": following})

    @api.post(
        "/api/coupons/claim",
        operation_id="claimCoupon",
        summary="Claim a coupon for a user",
        responses={
            201: Claim,
            **problems(
                errors.COUPON_NOT_FOUND, errors.ALREADY_CLAIMED, errors.NONE_LEFT, *errors.OF_A_BODY
            ),
        },
    )
    def claim_coupon(body: ClaimIn) -> Response:
        """A user who asks again, because an answer was lost, hears that the claim was granted."""
        try:
            row = store.claim(body.user_id, body.coupon_name)
        except NoSuchCoupon:
            raise _not_found(body.coupon_name) from None
        except AlreadyClaimed:
            raise ProblemError(
                errors.ALREADY_CLAIMED, "This user has claimed this coupon already."
            ) from None
        except NoneLeft:
            raise ProblemError(errors.NONE_LEFT, "All pieces of this coupon are claimed.") from None
        return json_response(row, 201)

    @api.post(
        "/api/coupons/claim/batch",
        operation_id="claimCouponForMany",
        summary="Claim a coupon for many users",
        responses={200: BatchOutcome, **problems(errors.COUPON_NOT_FOUND, *errors.OF_A_BODY)},
    )
    def claim_coupon_for_many(body: BatchIn) -> Response:
        """All in one transaction: after an error none of them was granted.

        A user who was too late is told so; that is no error of the batch.
        """
        try:
            claimed, before = store.claim_many(body.user_ids, body.coupon_name)
        except NoSuchCoupon:
            raise _not_found(body.coupon_name) from None

        def outcome(user: str) -> str:
            if user in claimed:
                return "claimed"
            return "already-claimed" if user in before else "none-left"

        outcomes = [{"user_id": user, "outcome": outcome(user)} for user in body.user_ids]
        return json_response(
            {"coupon_name": body.coupon_name, "claimed": len(claimed), "outcomes": outcomes}
        )

    return api
