"""How values stand in the tables of one store: each behind its digest, and in an encrypted store enciphered.

A value that reveals facts or keys is enciphered by AES-256-GCM under the store's data key (NIST SP 800-38D): a random
nonce of 96 bits, the ciphertext, a tag of 128 bits. What the tag covers beside it is the store's id and the record's
name, so a value that was changed, or put into the place of another, is refused. The digest stands outside, over the
ciphertext: whether a record is torn can be told without the key.

What the tables are sorted by stays in the clear: numbers of steps, and digests of facts, blobs and files.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from typing import Any

from lifelong_edit.errors import StoreDamagedError, StoreKeyError
from lifelong_edit.stores.digests import DIGEST_SIZE, digest_bytes, seal, unseal, unseal_chunks
from lifelong_edit.stores.keys import KEY_BYTES, keys_at_hand, unwrap, wrap
from lifelong_edit.stores.schema import Encryption, StoreMarker

CLEAR_TABLES = ("meta", "head", "references")
"""They hold digests, numbers of steps and the wrapped key, and are read before there is a key."""
NONCE_BYTES, TAG_BYTES = 12, 16
WHOLE_BYTES = 1 << 30
"""Values up to this length are enciphered at once, which is quicker, and at most 2 GiB long; others by parts."""
_PART = 1 << 20


class Cipher:
    """AES-256-GCM under the data key of the store with an id. A value may have any length."""

    def __init__(self, data_key: bytes, store_id: str) -> None:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        self.data_key, self._store_id = data_key, store_id
        self._whole = AESGCM(data_key)

    def encrypt(self, name: str, payload: bytes) -> bytes:
        """Nonce, ciphertext and tag of what is called `name`."""
        nonce = os.urandom(NONCE_BYTES)
        if len(payload) <= WHOLE_BYTES:
            return nonce + self._whole.encrypt(nonce, payload, self._bound(name))
        encryptor = self._by_parts(nonce).encryptor()
        encryptor.authenticate_additional_data(self._bound(name))
        parts = [encryptor.update(part) for part in _parts(payload)]
        return b"".join((nonce, *parts, encryptor.finalize(), encryptor.tag))

    def decrypt(self, name: str, data: bytes | memoryview) -> bytes:
        """The inverse of `encrypt`. Raises StoreDamagedError where it is not what was encrypted under that name."""
        from cryptography.exceptions import InvalidTag

        if len(data) > WHOLE_BYTES:
            return b"".join(self.decrypt_chunks(name, len(data), _parts(data)))
        try:
            return self._whole.decrypt(data[:NONCE_BYTES], memoryview(data)[NONCE_BYTES:], self._bound(name))
        except (InvalidTag, ValueError):
            raise _not_under_that_name(name) from None

    def decrypt_chunks(self, name: str, size: int, chunks: Iterable[bytes | memoryview]) -> Iterator[bytes]:
        """As `decrypt`, of `size` bytes in all; what is given out is verified when the iterator ends, not before."""
        from cryptography.exceptions import InvalidTag

        left, held, decryptor = size - NONCE_BYTES - TAG_BYTES, b"", None
        for chunk in chunks:
            held += chunk
            if decryptor is None and len(held) >= NONCE_BYTES and left >= 0:
                decryptor = self._by_parts(held[:NONCE_BYTES]).decryptor()
                decryptor.authenticate_additional_data(self._bound(name))
                held = held[NONCE_BYTES:]
            if decryptor is not None:
                ready = min(left, len(held))
                yield decryptor.update(held[:ready])
                left, held = left - ready, held[ready:]
        try:
            if decryptor is None:
                raise InvalidTag
            decryptor.finalize_with_tag(held)
        except (InvalidTag, ValueError):
            raise _not_under_that_name(name) from None

    def _by_parts(self, nonce: bytes) -> Any:
        from cryptography.hazmat.primitives.ciphers import Cipher as Ciphers
        from cryptography.hazmat.primitives.ciphers.algorithms import AES256
        from cryptography.hazmat.primitives.ciphers.modes import GCM

        return Ciphers(AES256(self.data_key), GCM(nonce))

    def _bound(self, name: str) -> bytes:
        return f"{self._store_id}/{name}".encode()


class Envelopes:
    """Puts values into their envelopes and takes them out, for a store in the clear or an encrypted one.

    encryption: how the store's marker holds the key; None: in the clear. cipher: None in an encrypted store whose key
    is not at hand, of which only the digests can be held against the values.
    """

    def __init__(self, encryption: Encryption | None = None, cipher: Cipher | None = None) -> None:
        self.encryption, self._cipher = encryption, cipher

    @classmethod
    def new(cls, name: object, store_id: str) -> Envelopes:
        """Of the new encrypted store called `name`, with a data key of its own.

        Raises StoreKeyError where no user's key is at hand.
        """
        data_key = os.urandom(KEY_BYTES)
        return cls(wrap(keys_at_hand(name)[0], data_key), Cipher(data_key, store_id))

    @classmethod
    def of(cls, name: object, *markers: StoreMarker | None) -> Envelopes:
        """Of the store called `name`, by the first of its markers that a key at hand opens.

        Markers of another store than the first one's are left out: whoever mixes stores is told so elsewhere.
        Raises StoreKeyError where the store is encrypted and no key, or a wrong one, is at hand.
        """
        known = [marker for marker in markers if marker is not None]
        own = [marker.encryption for marker in known if marker.store_id == known[0].store_id]
        held = [encryption for encryption in own if isinstance(encryption, Encryption)]
        if not held:
            return cls()
        data_key, encryption = unwrap(keys_at_hand(name), held, name)
        return cls(encryption, Cipher(data_key, known[0].store_id))

    def rewrapped(self, key: bytes) -> Encryption:
        """How a marker holds the data key so that another user's key opens it."""
        assert self._cipher is not None
        return wrap(key, self._cipher.data_key)

    # -- records

    def seal(self, name: str, payload: bytes) -> bytes:
        """The envelope of a record, with its payload in it."""
        return seal(name, self._encipher(name, payload) if self._hides(name) else payload)

    def unseal(self, name: str, sealed: bytes) -> bytes:
        """The payload of the record called `name`.

        Raises StoreDamagedError, naming the record, where it is not what was sealed under that name, StoreKeyError
        where it is and its key is not at hand.
        """
        payload = unseal(name, sealed)
        return self._decipher(name, payload) if self._hides(name) else payload

    def proved(self, name: str, sealed: bytes) -> bytes | None:
        """The payload of an envelope whose digest is damaged, where the tag of the cipher proves it nevertheless."""
        if self._cipher is not None and self._hides(name):
            try:
                return self._cipher.decrypt(name, sealed[DIGEST_SIZE:])
            except StoreDamagedError:
                return None
        return None

    # -- blobs; those in the clear need no envelope, their key in the table is their digest

    def seal_blob(self, digest: str, data: bytes) -> bytes:
        """A blob as it is stored."""
        return data if self.encryption is None else self.seal(f"blobs/{digest}", data)

    def unseal_blob(self, digest: str, stored: bytes) -> bytes:
        """A blob from what is stored, verified against its digest, its tag too. Errors as of `unseal`.

        The envelope's digest is left to `check_blob`: it would say of a large blob what those two have said.
        """
        name = f"blobs/{digest}"
        data = stored if self.encryption is None else self._decipher(name, memoryview(stored)[DIGEST_SIZE:])
        if (found := digest_bytes(data)) != digest:
            raise StoreDamagedError(f"blob {digest} reads as {found}; restore the store from a backup")
        return data

    def check_blob(self, digest: str, size: int, chunks: Iterable[bytes]) -> int:
        """Verify a blob that is stored in `size` bytes, piece by piece; its own length. Errors as of `unseal`."""
        name, state = f"blobs/{digest}", hashlib.blake2b(digest_size=DIGEST_SIZE)
        if self.encryption is not None:
            chunks = unseal_chunks(name, chunks)
            if self._cipher is None:
                for _ in chunks:
                    pass
                raise StoreKeyError(f"the key of record {name} is not at hand")
            chunks = self._cipher.decrypt_chunks(name, size - DIGEST_SIZE, chunks)
        for chunk in chunks:
            state.update(chunk)
        if state.hexdigest() != digest:
            raise StoreDamagedError(f"it reads as {state.hexdigest()}")
        return self.blob_size(size)

    def blob_size(self, stored: int) -> int:
        """How many bytes a blob has that takes so many."""
        return stored if self.encryption is None else max(0, stored - DIGEST_SIZE - NONCE_BYTES - TAG_BYTES)

    # -- files beside the database, which have digests of their own

    def seal_file(self, name: str, data: bytes) -> bytes:
        """The bytes of a file as they stand in the store's folder."""
        return data if self.encryption is None else self._encipher(name, data)

    def unseal_file(self, name: str, data: bytes) -> bytes:
        """The inverse of `seal_file`. Raises StoreDamagedError where it is not what was sealed under that name."""
        return data if self.encryption is None else self._decipher(name, data)

    def _hides(self, name: str) -> bool:
        return self.encryption is not None and name.partition("/")[0] not in CLEAR_TABLES

    def _encipher(self, name: str, payload: bytes) -> bytes:
        assert self._cipher is not None
        return self._cipher.encrypt(name, payload)

    def _decipher(self, name: str, data: bytes | memoryview) -> bytes:
        if self._cipher is None:
            raise StoreKeyError(f"the key of record {name} is not at hand")
        return self._cipher.decrypt(name, data)


IN_THE_CLEAR = Envelopes()
"""Of every store that is not encrypted."""


def _not_under_that_name(name: str) -> StoreDamagedError:
    return StoreDamagedError(
        f"record {name} is not what was encrypted under that name; restore the store from a backup"
    )


def _parts(data: bytes | memoryview) -> Iterator[memoryview]:
    view = memoryview(data)
    return (view[start : start + _PART] for start in range(0, len(view), _PART))
