"""What can be said of a store's soundness: each file, page, record and digest looked at, and nothing changed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from lifelong_edit.errors import StoreDamagedError, StoreError, StoreKeyError, said
from lifelong_edit.facts.stored import doubt
from lifelong_edit.stores import environment as environments
from lifelong_edit.stores.codec import decode_step
from lifelong_edit.stores.digests import digest_bytes
from lifelong_edit.stores.envelopes import Envelopes
from lifelong_edit.stores.environment import LATER, MEASUREMENTS, TABLES
from lifelong_edit.stores.findings import Entry, Examination, count_references
from lifelong_edit.stores.identity import HEAD_FILE, MARKER_FILE, decode_marker, read_acknowledged, read_marker
from lifelong_edit.stores.index import KeyIndex
from lifelong_edit.stores.pages import PageFile, Tree, Value
from lifelong_edit.stores.records import StepRecord
from lifelong_edit.stores.schema import Encryption
from lifelong_edit.stores.steps import Place
from lifelong_edit.stores.tables import (
    HEAD,
    MARKER,
    Consumed,
    Head,
    decode,
    is_idle,
    measurement_of,
    record_name,
    step_key,
)

_TRIES = 5


def examine(path: Path) -> Examination:
    """Look at a whole store. Raises StoreError where there is none, or one of a newer schema; damage is no error.

    Memory: a MiB of a blob at a time, the records of the steps, and 16 bytes for each fact.
    """
    found = Examination(path)
    with _finding(found, MARKER_FILE):
        found.marker = read_marker(path)
    with _finding(found, HEAD_FILE):
        found.acknowledged = read_acknowledged(path)  # before the database, to which a writer may be adding steps
    with contextlib.ExitStack() as stack:
        pages = _open(found, stack)
        if pages is not None:
            _tables(found, pages)
    _judge_files(found)
    if (doubt := KeyIndex.doubt(path / "index")) is not None:
        found.find("index", doubt)
    return found


def require_followable(path: Path) -> int:
    """How many bytes of a database hold nothing.

    Raises StoreDamagedError unless every page can be followed: LMDB would die of some that cannot.
    """
    with contextlib.ExitStack() as stack:
        pages = _open(Examination(path), stack)
        if pages is None:
            raise StoreDamagedError(f"{path / 'data.mdb'} holds no readable database; see `lifelong-edit fsck`")
        for tree in pages.tables().values() if pages.whole else ():
            for _ in pages.entries(tree):
                pass
        pages.account()
        for problem in pages.problems[:1]:
            where = f"{problem.tree}, page {problem.page}: {problem.what}"
            raise StoreDamagedError(f"{path / 'data.mdb'} is damaged ({where}); see `lifelong-edit fsck`")
        return pages.free


@contextlib.contextmanager
def _finding(found: Examination, record: str, steps: list[int] | None = None) -> Iterator[None]:
    try:
        yield
    except StoreDamagedError as error:
        found.find(record, error, steps)


# -- the database


def _open(found: Examination, stack: contextlib.ExitStack) -> PageFile | None:
    """The pages of the last committed state, held still by a read transaction where LMDB can open the database."""
    data = found.path / "data.mdb"
    for _ in range(_TRIES):
        try:
            if not _catalogued(data):
                continue  # a writer may have been at it; if not, LMDB had better not look
            environment = environments.acquire(found.path, read_only=True)
        except (StoreError, OSError, ValueError):
            break
        stack.callback(environments.release, environment)
        for _ in range(_TRIES):
            with contextlib.ExitStack() as attempt:
                transaction = attempt.enter_context(environment.reading())
                with contextlib.suppress(LookupError):
                    pages = attempt.enter_context(PageFile(data, transaction.id()))
                    stack.push(attempt.pop_all())
                    return pages
    try:
        return stack.enter_context(PageFile(data))
    except (OSError, ValueError) as error:
        found.readable = False
        found.find("data.mdb", getattr(error, "strerror", None) or error)
        return None


def _catalogued(data: Path) -> bool:
    """Whether the list of tables can be followed, so that LMDB may open it."""
    with PageFile(data) as pages:
        pages.tables()
        return not pages.problems


def _tables(found: Examination, pages: PageFile) -> None:
    tables = pages.tables() if pages.whole else {}
    readers = {
        "meta": _meta, "head": _head, "steps": _step, "facts": _fact, "blobs": _blob, "references": _reference,
        "places": _place, MEASUREMENTS: _measurement,
    }  # fmt: skip
    for name in TABLES:
        if name not in tables and name not in LATER and pages.whole:
            found.find(f"data.mdb: {name}", "the table is missing")
    for name, reader in readers.items():
        tree = tables.pop(name, None)
        if tree is not None:
            found.records[name] = _walk(found, pages, tree, reader)
        if name == "meta":
            _unlock(found)  # by both markers, and before any record that may be encrypted
    for tree in tables.values():
        found.find(f"data.mdb: {tree.name}", "there is no such table in a store")
        found.records[tree.name] = sum(1 for _ in pages.entries(tree))
    pages.account()
    for problem in pages.problems:
        found.readable = False
        found.find(f"data.mdb: {problem.tree}, page {problem.page}", problem.what)
    if pages.whole and found.locked is None:
        _judge_steps(found)
        _judge_facts(found)
        _judge_blobs(found)
        _judge_places(found)


def _unlock(found: Examination) -> None:
    try:
        found.envelopes = Envelopes.of(found.path, *found.markers)
    except StoreKeyError as error:
        encryption = next(m.encryption for m in found.markers if isinstance(m.encryption, Encryption))
        found.envelopes, found.locked = Envelopes(encryption), str(error)


def _walk(found: Examination, pages: PageFile, tree: Tree, reader: object) -> int:
    assert callable(reader)
    count = 0
    for key, value in pages.entries(tree):
        count += 1
        reader(found, pages, key, value)
    return count


def _unsealed(found: Examination, pages: PageFile, table: str, key: bytes, value: Value) -> bytes | None:
    """The payload of a record; None, with a finding, where it is damaged, and where its key is not at hand."""
    name, sealed = record_name(table, key), pages.read(value)
    try:
        return found.envelopes.unseal(name, sealed)
    except StoreKeyError:
        return None
    except StoreDamagedError as error:
        found.broken[table, key] = sealed
        found.find(name, error, [int.from_bytes(key, "big")] if table == "steps" else None)
        return None


def _meta(found: Examination, pages: PageFile, key: bytes, value: Value) -> None:
    payload = _unsealed(found, pages, "meta", key, value)
    if payload is not None and key == MARKER:
        with _finding(found, "meta/marker"):
            found.inside = decode_marker(payload, "the marker inside the database")


def _head(found: Examination, pages: PageFile, key: bytes, value: Value) -> None:
    payload = _unsealed(found, pages, "head", key, value)
    if payload is not None and key == HEAD:
        with _finding(found, "head/head"):
            found.head = decode(payload, Head, "head/head")


def _step(found: Examination, pages: PageFile, key: bytes, value: Value) -> None:
    payload = _unsealed(found, pages, "steps", key, value)
    if payload is None:
        return
    number = int.from_bytes(key, "big")
    try:
        record = decode_step(payload)
    except msgspec.MsgspecError as error:
        found.find(f"steps/{number}", f"it is no step of this schema ({said(error)})", [number])
        return
    if record.step != number:
        found.find(f"steps/{number}", f"it is the record of step {record.step}", [number])
        return
    places = sum(_weight(place.file_digest, place.number, place.fact) for place in record.places)
    found.steps[number] = Entry(_in_short(record), digest_bytes(payload), places)


def _in_short(record: StepRecord) -> StepRecord:
    """A record without what may be large and is not needed here."""
    short: dict[str, Any] = {"places": (), "gate": None, "forecast": None, "in_words_of": {}, "staleness": None}
    short["conflicts"] = tuple(met for met in record.conflicts if met.action == "quarantine")
    own = {name: value for name, value in short.items() if name in record.__struct_fields__}
    provenance = record.provenance if record.step == 0 else {}  # the shapes of the modules
    return msgspec.structs.replace(record, **own, notes={}, provenance=provenance)


def _weight(file_digest: str, number: int, fact: str) -> int:
    return int(digest_bytes(f"{file_digest}/{number}/{fact}".encode()), 16)


def _fact(found: Examination, pages: PageFile, key: bytes, value: Value) -> None:
    payload = _unsealed(found, pages, "facts", key, value)
    if payload is None:
        return
    name = record_name("facts", key)  # the steps of a finding are added when they are known
    try:
        problem = doubt(payload, key.decode("ascii", "backslashreplace"))
    except StoreDamagedError as error:
        found.find(name, error)
    else:
        if problem is not None:
            found.find(name, problem, intact=True)
        found.facts.add(key)


def _blob(found: Examination, pages: PageFile, key: bytes, value: Value) -> None:
    digest = key.decode("ascii", "backslashreplace")
    try:
        found.blobs[digest] = found.envelopes.check_blob(digest, value.size, pages.chunks(value))
    except StoreKeyError:
        return
    except StoreDamagedError as error:
        found.damaged.add(digest)
        found.find(f"blobs/{digest}", error)  # the steps are added when they are known


def _reference(found: Examination, pages: PageFile, key: bytes, value: Value) -> None:
    payload = _unsealed(found, pages, "references", key, value)
    if payload is not None:
        found.references[key.decode("ascii", "backslashreplace")] = int.from_bytes(payload, "big")


def _place(found: Examination, pages: PageFile, key: bytes, value: Value) -> None:
    payload, name = _unsealed(found, pages, "places", key, value), record_name("places", key)
    if payload is None:
        return
    with _finding(found, name):
        if is_idle(key):
            decode(payload, list[Place], name)
            return
        file_digest, number = key[:-8].decode("ascii", "backslashreplace"), int.from_bytes(key[-8:], "big")
        for fact, step in decode(payload, list[Consumed], name):
            found.places[step] = found.places.get(step, 0) + _weight(file_digest, number, fact)


def _measurement(found: Examination, pages: PageFile, key: bytes, value: Value) -> None:
    payload, name = _unsealed(found, pages, MEASUREMENTS, key, value), record_name(MEASUREMENTS, key)
    if payload is None:
        return
    with _finding(found, name):
        step = measurement_of(key, payload).step
        if step_key(step) != key:
            found.find(name, f"it is the measurement of step {step}")


# -- what has to fit together


def _judge_steps(found: Examination) -> None:
    steps = found.steps
    for number in range(found.last + 1):
        if number not in steps:
            if ("steps", step_key(number)) not in found.broken and not _told(found, f"steps/{number}"):
                found.find(f"steps/{number}", "the record is missing", [number])
        elif number == 0 or number - 1 in steps:
            before = steps[number - 1].chain if number else ""
            if steps[number].record.previous != before:
                problem = f"it follows {steps[number].record.previous}, but step {number - 1} has chain digest {before}"
                found.find(f"steps/{number}", problem, [number])
    head = found.head
    if head is None:
        if ("head", HEAD) not in found.broken and not _told(found, "head/head"):
            found.find("head/head", "the record is missing")
    elif head.step != found.last or (head.step in steps and steps[head.step].chain != head.chain):
        found.find("head/head", f"it is step {head.step} with chain {head.chain}, but the steps end at {found.last}")
    if found.inside is None and ("meta", MARKER) not in found.broken and not _told(found, "meta/marker"):
        found.find("meta/marker", "the record is missing")


def _told(found: Examination, record: str) -> bool:
    return any(finding.record == record for finding in found.findings)


def _judge_facts(found: Examination) -> None:
    told = {finding.record: finding for finding in found.findings}
    named: dict[str, list[int]] = {}
    purged = {fact for entry in found.steps.values() for fact in entry.record.purged}
    for number, entry in sorted(found.steps.items()):
        for fact in (*entry.record.added, *entry.record.superseded, *entry.record.aside):
            if (f"facts/{fact}" in told or fact.encode() not in found.facts) and fact not in purged:
                named.setdefault(fact, []).append(number)
    for fact, steps in named.items():
        if (finding := told.get(f"facts/{fact}")) is not None:
            finding.steps = steps
        else:
            found.find(f"facts/{fact}", "the record is missing", steps)


def _judge_blobs(found: Examination) -> None:
    named, told = found.named(), {finding.record: finding for finding in found.findings}
    for digest, steps in named.items():
        if digest in found.damaged:
            told[f"blobs/{digest}"].steps = steps
        elif digest not in found.blobs and digest not in found.dropped:
            found.find(f"blobs/{digest}", "it is missing", steps)
    if found.last + 1 != len(found.steps):
        return  # without all steps nobody knows how often a blob is named
    counts = count_references(found)
    for digest, count in counts.items():
        stored = found.references.get(digest)
        if stored != count and ("references", digest.encode()) not in found.broken:
            found.find(f"references/{digest}", f"it says {stored}, but {count} steps name the blob", named[digest])
    for digest in found.references.keys() - counts.keys():
        found.find(f"references/{digest}", "no step names that blob")


def _judge_places(found: Examination) -> None:
    for number in sorted(found.steps.keys() | found.places.keys()):
        if number not in found.steps and number <= found.last:
            continue  # its record is damaged, which has been said
        own = found.steps[number].places if number in found.steps else 0
        if own != found.places.get(number, 0):
            found.find(f"places of step {number}", "the table does not hold what the step names", [number])


def _judge_files(found: Examination) -> None:
    """Hold the database against the files beside it; it may be ahead of HEAD."""
    seen = [(MARKER_FILE, found.marker), (HEAD_FILE, found.acknowledged), ("data.mdb", found.inside)]
    ids = {name: one.store_id for name, one in seen if one is not None}
    if len(set(ids.values())) > 1:
        found.find("store", "files of several stores: " + ", ".join(f"{name} of {i}" for name, i in ids.items()))
    if len(set(ids.values())) == 1 and len({marker.encryption for marker in found.markers}) > 1:
        found.find(MARKER_FILE, "it holds the store's key in another way than the database: a `rekey` was interrupted")
    acknowledged = found.acknowledged
    if acknowledged is None or not found.readable or found.last < 0:
        return
    if acknowledged.step > found.last:
        found.find(
            HEAD_FILE,
            f"step {acknowledged.step} was acknowledged, but the database ends at step {found.last}: an older copy "
            "stands in its place",
        )
    elif acknowledged.step in found.steps and found.steps[acknowledged.step].chain != acknowledged.chain:
        chain = found.steps[acknowledged.step].chain
        found.find(
            HEAD_FILE,
            f"step {acknowledged.step} was acknowledged with chain {acknowledged.chain}, the database has {chain}: "
            "this is another history",
        )
