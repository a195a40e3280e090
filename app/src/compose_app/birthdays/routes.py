"""/api/user."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from flask import Response
from flask_openapi3 import Tag

from compose_app import errors
from compose_app.birthdays.celebration import following
from compose_app.birthdays.schemas import User, UserIn, UserPath
from compose_app.birthdays.store import EmailTaken, Row, UserStore, UserValues
from compose_app.errors import ProblemError
from compose_app.openapi import Blueprint, created, json_response, problems


def _not_found(user_id: int) -> ProblemError:
    return ProblemError(errors.USER_NOT_FOUND, f"There is no user {user_id}.")


def _email_taken() -> ProblemError:
    return ProblemError(
        errors.EMAIL_TAKEN,
        "Another user has this address.",
        [{"location": ["body", "email"], "message": "is taken"}],
    )


def _values(body: UserIn) -> UserValues:
    return UserValues(
        first_name=body.first_name,
        last_name=body.last_name,
        birthday=body.birthday,
        time_zone=body.time_zone,
        email=body.email,
    )


def _shown(row: Row) -> dict[str, Any]:
    coming = following(row["birthday"], row["time_zone"], datetime.now(UTC))
    return {**row, "next_birthday": coming.day, "next_message_at": coming.due_at}


def blueprint(store: UserStore) -> Blueprint:
    """The operations on users."""
    api = Blueprint("users", __name__, abp_tags=[Tag(name="users")])

    @api.post(
        "/api/user",
        operation_id="createUser",
        summary="Create a user",
        responses={201: created(User), **problems(errors.EMAIL_TAKEN, *errors.OF_A_BODY)},
    )
    def create_user(body: UserIn) -> Response:
        try:
            row = store.create(_values(body))
        except EmailTaken:
            raise _email_taken() from None
        return json_response(_shown(row), 201, {"Location": f"/api/user/{row['id']}"})

    @api.get(
        "/api/user/<id>",
        operation_id="getUser",
        summary="Get a user",
        responses={
            200: User,
            **problems(errors.USER_NOT_FOUND, errors.INVALID, errors.UNAVAILABLE),
        },
    )
    def get_user(path: UserPath) -> Response:
        row = store.get(path.id)
        if row is None:
            raise _not_found(path.id)
        return json_response(_shown(row))

    @api.put(
        "/api/user/<id>",
        operation_id="replaceUser",
        summary="Change a user",
        responses={
            200: User,
            **problems(errors.USER_NOT_FOUND, errors.EMAIL_TAKEN, *errors.OF_A_BODY),
        },
    )
    def replace_user(path: UserPath, body: UserIn) -> Response:
        """All values are given anew."""
        try:
            row = store.replace(path.id, _values(body))
        except EmailTaken:
            raise _email_taken() from None
        if row is None:
            raise _not_found(path.id)
        return json_response(_shown(row))

    @api.delete(
        "/api/user/<id>",
        operation_id="deleteUser",
        summary="Delete a user",
        responses={
            204: None,
            **problems(errors.USER_NOT_FOUND, errors.INVALID, errors.UNAVAILABLE),
        },
    )
    def delete_user(path: UserPath) -> Response:
        if not store.delete(path.id):
            raise _not_found(path.id)
        return Response(status=204)

    return api
