"""What a store of an earlier schema has done to it by the first write of this release: named, in order, each once.

All that are due run in the transaction of that write, with the marker that names them: killed anywhere, it is the old
store or the new one. Until then it is read as it is. The release that made it refuses it afterwards, by its number;
a release refuses a store that has had a migration which it does not know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import msgspec

from lifelong_edit.stores.environment import MEASUREMENTS
from lifelong_edit.stores.schema import SCHEMA_VERSION, StoreMarker
from lifelong_edit.stores.tables import Tables

Run = Callable[[Tables], None]


@dataclass(frozen=True)
class Migration:
    """What leads to the schema whose number its name begins with."""

    name: str
    run: Run

    @property
    def schema(self) -> int:
        """The number of the schema that it leads to."""
        return int(self.name[:4])


MIGRATIONS: list[Migration] = []
"""All, in order."""


def migration(name: str) -> Callable[[Run], Run]:
    """Register a function of the tables under a name: four digits of a schema, and a word."""

    def register(run: Run) -> Run:
        MIGRATIONS.append(Migration(name, run))
        return run

    return register


@migration("0002-names")
def _names(tables: Tables) -> None:
    """Kinds `tag`, `branch`, `switch` and `decide`, authors: new kinds of steps alone, nothing is rewritten."""


@migration("0003-keeping")
def _keeping(tables: Tables) -> None:
    """Kinds `compact`, `restore` and `purge`: new kinds of steps alone."""


@migration("0004-measurements")
def _measurements(tables: Tables) -> None:
    """The table of what was measured."""
    tables.make(MEASUREMENTS)


@migration("0005-typed-records")
def _typed_records(tables: Tables) -> None:
    """A type for each kind of step, parts, migrations by name. Steps that are there keep their bytes: see `legacy`.

    A store that came to schema 4 by a step, and not by a measurement, has no table of them yet.
    """
    tables.make(MEASUREMENTS)


def names() -> tuple[str, ...]:
    """The names of all migrations, which a new store is made with."""
    return tuple(one.name for one in MIGRATIONS)


def due(marker: StoreMarker) -> list[Migration]:
    """Those that a store has not had. Stores of schemas 1 to 4 name none: their number says which."""
    if isinstance(marker.migrations, msgspec.UnsetType):
        return [one for one in MIGRATIONS if one.schema > marker.schema_version]
    return [one for one in MIGRATIONS if one.name not in marker.migrations]


def unknown(applied: Iterable[str]) -> list[str]:
    """Those of the names that this release does not know."""
    return [name for name in applied if name not in names()]


def migrated(marker: StoreMarker) -> StoreMarker:
    """The marker of a store that has had them all; the same object where it has."""
    if not due(marker) and marker.schema_version == SCHEMA_VERSION:
        return marker
    return msgspec.structs.replace(marker, schema_version=SCHEMA_VERSION, migrations=names())
