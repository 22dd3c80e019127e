"""Contracts for tests: a small valid one, to which a test adds what it is about."""

from typing import Any

from pipeline_assets.quality.contract import Contract
from pipeline_assets.quality.odcs import parse_contract


def document(
    properties: list[dict[str, Any]],
    *,
    quality: list[dict[str, Any]] | None = None,
    **table: Any,
) -> dict[str, Any]:
    """An ODCS document of a table `things` with a key `id`, a change time and these properties.

    A property named `id` or `changed_at` replaces the default one.
    """
    given = {prop["name"] for prop in properties}
    default = [
        {"name": "id", "physicalType": "bigint", "primaryKey": True},
        {"name": "changed_at", "physicalType": "timestamptz", "partitioned": True},
    ]
    columns = [*(prop for prop in default if prop["name"] not in given), *properties]
    return {
        "apiVersion": "v3.1.0",
        "kind": "DataContract",
        "id": "things",
        "version": "1.0.0",
        "status": "active",
        "team": {"name": "testers"},
        "schema": [
            {
                "name": "things",
                "logicalType": "object",
                "physicalName": "public.things",
                "description": "What a test is about.",
                "customProperties": [{"property": "sourceRelation", "value": "public.source"}],
                "properties": columns,
                **({"quality": quality} if quality else {}),
                **table,
            }
        ],
    }


def contract(properties: list[dict[str, Any]], **table: Any) -> Contract:
    """The contract of such a document."""
    return parse_contract(document(properties, **table))
