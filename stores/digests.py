"""Content digests, and the envelope in which every record of the log carries its own.

LMDB has no checksums: a flipped bit in a value comes back as data. So each record is stored as
digest + payload, and the digest also covers the record's name, so that two intact records that
change places are noticed too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

from lifelong_edit.errors import StoreDamagedError

DIGEST_SIZE = 16
"""Bytes of a digest: BLAKE2b (RFC 7693) at 128 bits; 32 characters in hexadecimal."""


def digest_bytes(*chunks: bytes | bytearray | memoryview) -> str:
    """The digest of the chunks laid end to end, as 32 hexadecimal characters."""
    state = hashlib.blake2b(digest_size=DIGEST_SIZE)
    for chunk in chunks:
        state.update(chunk)
    return state.hexdigest()


def seal(name: str, payload: bytes) -> bytes:
    """The envelope of a record: the digest of its name and payload, then the payload."""
    return _envelope_digest(name, payload) + payload


def unseal(name: str, sealed: bytes) -> bytes:
    """The payload of the record called `name`.

    Raises StoreDamagedError, naming the record, where the envelope is torn or its digest differs.
    """
    if len(sealed) < DIGEST_SIZE:
        raise StoreDamagedError(
            f"record {name} holds {len(sealed)} bytes, fewer than the {DIGEST_SIZE} of its own digest; "
            "restore the store from a backup"
        )
    found, payload = sealed[:DIGEST_SIZE], sealed[DIGEST_SIZE:]
    _require_equal(name, found, _envelope_digest(name, payload))
    return payload


def unseal_chunks(name: str, chunks: Iterable[bytes]) -> Iterator[bytes]:
    """As `unseal`, piece by piece; whether it holds is known, and raised, when the iterator ends."""
    found, state = b"", _begun(name)
    for chunk in chunks:
        missing = DIGEST_SIZE - len(found)
        found += chunk[:missing]
        state.update(chunk[missing:])
        yield chunk[missing:]
    _require_equal(name, found, state.digest())


def is_sealed(name: str, sealed: bytes | bytearray) -> bool:
    """Whether an envelope is intact, and that of the record called `name`."""
    return bytes(sealed[:DIGEST_SIZE]) == _envelope_digest(name, sealed[DIGEST_SIZE:])


def _require_equal(name: str, found: bytes, expected: bytes) -> None:
    if found != expected:
        raise StoreDamagedError(
            f"record {name} has digest {expected.hex()}, but {found.hex()} was stored with it; "
            "restore the store from a backup"
        )


def _envelope_digest(name: str, payload: bytes | bytearray) -> bytes:
    state = _begun(name)
    state.update(payload)
    return state.digest()


def _begun(name: str) -> hashlib.blake2b:
    state = hashlib.blake2b(digest_size=DIGEST_SIZE)
    state.update(len(name.encode()).to_bytes(4, "big"))
    state.update(name.encode())
    return state
