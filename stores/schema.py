"""Whose store this is, and of which schema. What the log says is in `stores.records`."""

from __future__ import annotations

from typing import Literal

import msgspec

SCHEMA_VERSION = 5
"""Written into every store; a store with a larger number is refused, naming both.

What each number brought has a name, and is done to an earlier store by its first write: see `stores.migrations`.
"""


class Encryption(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a marker holds the key of an encrypted store."""

    cipher: Literal["AES-256-GCM"] = "AES-256-GCM"
    wrapped: str
    """The store's data key, wrapped by the user's key (RFC 3394): 40 bytes in hexadecimal."""


class StoreMarker(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `store.json` holds beside the database, and the database beside its records: whose store this is."""

    store_id: str
    created: str
    """UTC, ISO 8601."""
    schema_version: int = SCHEMA_VERSION
    application: str = "lifelong-edit"
    encryption: Encryption | msgspec.UnsetType = msgspec.UNSET
    """Of an encrypted store; other markers say nothing of it."""
    migrations: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    """Names of the migrations that the store has had, or was made with; those of schemas 1 to 4 say nothing of it."""
