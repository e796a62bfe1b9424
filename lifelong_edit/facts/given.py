"""Facts, prompts and texts as Python code gives them: our own records, dicts, tables. Checked as those of files are.

Tables are known by what they can do, and neither pandas nor datasets is imported. Every error says which item of what
was given it is about, counted from 0 as Python counts.
"""

from __future__ import annotations

import datetime
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from os import PathLike
from typing import Any, Protocol

from lifelong_edit.errors import BadInputError, UsageError
from lifelong_edit.facts.checks import NUMBERS_IN_TABLES, shown, text_flaw
from lifelong_edit.facts.dates import date_text
from lifelong_edit.facts.decoding import Value, checked
from lifelong_edit.facts.fields import require_filled_in
from lifelong_edit.facts.reading import READER, ReadReport, describe_unused, preserved_prompts_of, prompts_of
from lifelong_edit.facts.record import Fact, Probe, Record
from lifelong_edit.facts.shapes import QUARANTINED, Reader, entry_of


class Table(Protocol):
    """What is asked of a table, as pandas has them."""

    @property
    def columns(self) -> Any:
        """The names of the columns."""
        ...

    def to_dict(self, orient: Any, /) -> Any:
        """With "records": a list of dicts, one for each row."""
        ...


Item = Fact | Record | Mapping[str, Any]
Given = Item | Iterable[Item] | Table
"""One fact, or any number: facts, records, dicts of any shape that `read_facts` knows; a pandas DataFrame, a
`datasets.Dataset`, a generator."""
NONE = "no fact was given; expected at least one, see `lifelong-edit facts`"


class UnusedFieldsWarning(UserWarning):
    """Fields of dicts or of a table that no fact was made of."""


def as_batch(
    given: Given, what: str = "batch", *, reader: Reader = READER, report: ReadReport | None = None
) -> list[Fact | Record]:
    """The facts and records of a batch, in order; a single one is a batch of one.

    Of a dict, or a row of a table, fields without a value (None, NaN and pandas' other marks) count as absent. Rows
    that teach nothing, as FEVER's NOT ENOUGH INFO, are left out. what: how messages call what was given. reader: how
    dicts and rows are read. Fields that are not used are counted in `report`; where there is none, they are named in an
    `UnusedFieldsWarning`. Raises BadInputError, naming the item, where one is no fact, and UsageError where nothing of
    the kind was given.
    """
    counted = ReadReport() if report is None else report
    items = enumerate(_items(given, what, "facts, records or dicts", reader))
    found = [part for i, item in items for part in _facts_of(item, f"{what}[{i}]", reader, counted)]
    if report is None and counted.unused:
        warnings.warn(f"{what}: {describe_unused(counted.unused)}", UnusedFieldsWarning, stacklevel=3)
    return found


def as_digests(given: Given | str | Iterable[Item | str], none: str = NONE) -> list[str]:
    """The digests of facts that are named by themselves, or by digests or beginnings of them, which stay as they are.

    none: the message of the UsageError where there is none of them. Other errors as of `as_batch`.
    """
    names = [given] if isinstance(given, str) else _items(given, "facts", "facts, or digests of facts")
    found: list[str] = []
    for i, item in enumerate(names):
        if isinstance(item, str):
            found.append(item)
        else:
            found += [_bare(part).digest for part in _facts_of(item, f"facts[{i}]", READER, ReadReport())]
    if not found:
        raise UsageError(none)
    return found


def as_probes(given: Iterable[Probe | Fact | Mapping[str, Any] | str], what: str = "preserve") -> list[Probe]:
    """Prompts to preserve: probes, texts, facts and dicts as `read_prompts` reads them. Errors as of `as_batch`."""
    if isinstance(given, str):
        raise UsageError(f"found one text as `{what}`, expected a list of prompts; use `read_prompts` to read files")
    found: list[Probe] = []
    for i, item in enumerate(_items(given, what, "probes, texts, facts or dicts")):
        where = f"{what}[{i}]"
        if isinstance(item, Probe):
            found.append(item)
        elif isinstance(item, str):
            found.append(_at(where, lambda item=item: Probe(item.strip())))
        elif isinstance(item, Mapping):
            found += _at(where, lambda item=item: prompts_of(_row(item)))
        else:
            for part in _facts_of(item, where, READER, ReadReport()):
                found += preserved_prompts_of(_bare(part))
    return found


def as_texts(given: Iterable[str], what: str = "text") -> list[str]:
    """Ordinary text, in any number of pieces. Raises BadInputError for what is no text, UsageError for a single one."""
    if isinstance(given, str):
        raise UsageError(f"found one text as `{what}`, expected a list of them; put it into a list")
    found = []
    for i, text in enumerate(_items(given, what, "texts")):
        if not isinstance(text, str):
            raise BadInputError(f"{what}[{i}]: found {shown(text)}, expected text; leave it out")
        if (flaw := text_flaw(text)) is not None:
            raise BadInputError(f"{what}[{i}]: {flaw}")
        found.append(text)
    return found


def _items(given: Any, what: str, expected: str, reader: Reader = READER) -> Iterator[Any]:
    if _is_split(given):
        told = ", ".join(map(str, given))
        raise UsageError(f"found a data set of the splits {told} as `{what}`, expected one of them; choose one by name")
    if isinstance(given, Fact | Record | Probe | Mapping):
        return iter([given])
    if callable(getattr(given, "to_dict", None)) and hasattr(given, "columns"):
        return iter(_rows(given, what, reader))
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        hint = "; `read_facts` reads files" if isinstance(given, str | bytes | PathLike) else "; put it into a list"
        raise UsageError(f"found {shown(given)} as `{what}`, expected {expected}{hint}")
    return iter(given)


def _is_split(given: Any) -> bool:
    """Whether something is a `DatasetDict`, or what streams like one."""
    values = list(given.values())[:1] if isinstance(given, Mapping) and given else []
    return bool(values) and hasattr(values[0], "column_names") and hasattr(values[0], "features")


def _rows(table: Any, what: str, reader: Reader) -> list[Any]:
    """The rows of a table as dicts. Raises BadInputError for columns that no field of a native record is called by."""
    columns = [str(name) for name in table.columns]
    if twice := sorted({name for name in columns if columns.count(name) > 1}):
        raise BadInputError(f"{what}: found the column {twice[0]!r} twice, expected each once; drop one of them")
    known = {*Fact.__struct_fields__, QUARANTINED}
    unknown = [name for name in columns if name not in known]
    if unknown and not reader.mapping and {"prompt", "target"}.issubset(columns):
        told = ", ".join(map(repr, unknown[:8]))
        raise BadInputError(
            f"{what}: found the column{'s' * (len(unknown) > 1)} {told}, expected those of facts "
            f"({', '.join(Fact.__struct_fields__)}); rename or drop what is none of them"
        )
    rows: list[Any] = table.to_dict("records")
    return rows


def _facts_of(item: Any, where: str, reader: Reader, report: ReadReport) -> list[Fact | Record]:
    """The facts, or their records, of one item; none where it teaches nothing."""
    if isinstance(item, Record) and isinstance(item.fact, Fact):
        return [item]
    if isinstance(item, Fact):
        _at(where, lambda: require_filled_in(item))
        return [item]
    if not isinstance(item, Mapping):
        raise BadInputError(f"{where}: found {shown(item)}, expected a fact, a record or a dict; leave it out")
    row = _row(item)
    found = _at(where, lambda: reader(_sound(row)), item)
    report.add(found)
    entry = entry_of(row)
    return [part if entry is None else Record(part, where, 1, "", 0, quarantined=entry) for part in found.facts]


def _bare(item: Fact | Record) -> Fact:
    return item.fact if isinstance(item, Record) else item


def _sound(row: dict[str, Any]) -> Value:
    found = checked(row)
    if isinstance(found, BadInputError):
        raise found
    return found


def _at(where: str, make: Any, item: Mapping[str, Any] | None = None) -> Any:
    """What `make` makes of an item; errors say where it stands, and where they help, what tables do to values."""
    try:
        return make()
    except BadInputError as error:
        raise BadInputError(f"{where}: {error}{_hint(str(error), item or {})}") from None


def _hint(error: str, item: Mapping[str, Any]) -> str:
    if "got `int`" in error or "got `float`" in error:
        return f" ({NUMBERS_IN_TABLES})"
    absent = [repr(str(name)[:40]) for name, value in item.items() if _is_missing(value)]
    if absent and ("required field" in error or "found a record with" in error):
        return f" (without a value: {', '.join(absent[:8])})"
    return ""


def _row(item: Mapping[Any, Any]) -> dict[str, Any]:
    """A mapping as JSON would hold it, without the fields that have no value."""
    return {str(name): _plain(value) for name, value in item.items() if not _is_missing(value)}


def _plain(value: Any) -> Any:
    """A value of NumPy's or another library's as one of Python's; what was left empty within it is left out."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, datetime.date):
        return date_text(value)
    if isinstance(value, Mapping):
        return _row(value)
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value


def _is_missing(value: Any) -> bool:
    """Whether a value is one of the marks for none: None, NaN of any kind, pandas' NA and NaT."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    try:
        return not isinstance(value, str | list | tuple | Mapping) and math.isnan(value)
    except (TypeError, ValueError, OverflowError):
        return False
