"""/api/items."""

from __future__ import annotations

from flask import Response
from flask_openapi3 import Tag

from compose_app import cursor, errors
from compose_app.errors import ProblemError
from compose_app.fields import PageQuery
from compose_app.items.schemas import Item, ItemIn, ItemPage, ItemPath
from compose_app.items.store import ItemStore, NameTaken
from compose_app.openapi import Blueprint, created, json_response, problems


def _not_found(item_id: int) -> ProblemError:
    return ProblemError(errors.ITEM_NOT_FOUND, f"There is no item {item_id}.")


def blueprint(store: ItemStore) -> Blueprint:
    """The operations on items."""
    api = Blueprint("items", __name__, abp_tags=[Tag(name="items")])

    @api.get(
        "/api/items",
        operation_id="listItems",
        summary="List items",
        responses={200: ItemPage, **problems(errors.INVALID, errors.UNAVAILABLE)},
    )
    def list_items(query: PageQuery) -> Response:
        """Items in order of their ids. An item that exists throughout is on exactly one page."""
        rows = store.page(query.cursor, query.limit + 1)
        more = len(rows) > query.limit
        rows = rows[: query.limit]
        return json_response(
            {"items": rows, "next_cursor": cursor.encode(rows[-1]["id"]) if more else None}
        )

    @api.post(
        "/api/items",
        operation_id="createItem",
        summary="Create an item",
        responses={
            201: created(Item),
            **problems(errors.NAME_TAKEN, *errors.OF_A_BODY),
        },
    )
    def create_item(body: ItemIn) -> Response:
        try:
            row = store.create(body.name, body.description, body.price_cents, body.quantity)
        except NameTaken:
            raise ProblemError(
                errors.NAME_TAKEN,
                "Another item already has this name.",
                [{"location": ["body", "name"], "message": "is taken"}],
            ) from None
        return json_response(row, 201, {"Location": f"/api/items/{row['id']}"})

    @api.get(
        "/api/items/<id>",
        operation_id="getItem",
        summary="Get an item",
        responses={
            200: Item,
            **problems(errors.ITEM_NOT_FOUND, errors.INVALID, errors.UNAVAILABLE),
        },
    )
    def get_item(path: ItemPath) -> Response:
        row = store.get(path.id)
        if row is None:
            raise _not_found(path.id)
        return json_response(row)

    @api.delete(
        "/api/items/<id>",
        operation_id="deleteItem",
        summary="Delete an item",
        responses={
            204: None,
            **problems(errors.ITEM_NOT_FOUND, errors.INVALID, errors.UNAVAILABLE),
        },
    )
    def delete_item(path: ItemPath) -> Response:
        if not store.delete(path.id):
            raise _not_found(path.id)
        return Response(status=204)

    return api
