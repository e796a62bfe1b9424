"""The key of an encrypted store: the user's key in a file, and the store's own key, which that one wraps.

Each store has a random data key of 256 bits, which never changes. The marker holds it wrapped by the user's key (AES
key wrap, RFC 3394), so that a wrong key is noticed at once, and the user's key can be changed without writing the data
anew.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from lifelong_edit.atomic import fsync_path
from lifelong_edit.errors import StoreError, StoreKeyError, UsageError
from lifelong_edit.settings import KEY_VARIABLE
from lifelong_edit.stores.schema import Encryption

KEY_BYTES = 32
_DIGITS = re.compile(rb"[0-9a-fA-F]{64}")
_MAX_FILE_BYTES = 4096
_GENERATE = "`lifelong-edit keygen FILE` makes one"

_LOGGER = logging.getLogger(__name__)


def write_key_file(file: str | Path) -> None:
    """A new random key in a new file that its owner alone may read, on the disk when it returns.

    Raises UsageError where something is there already, StoreError where the file cannot be written.
    """
    file = Path(file)
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(os.urandom(KEY_BYTES).hex().encode() + b"\n")
                stream.flush()
                os.fsync(stream.fileno())
            fsync_path(file.absolute().parent)
        except BaseException:
            file.unlink(missing_ok=True)
            raise
    except FileExistsError:
        raise UsageError(f"{file} is already there, and a key is never overwritten; choose another name") from None
    except OSError as error:
        raise StoreError(f"cannot write a key to {file}: {error.strerror}; choose another place") from error


def read_key_file(file: str | Path) -> bytes:
    """The 32 bytes of a key file. Raises StoreKeyError where it cannot be read or holds no key."""
    file = Path(file)
    try:
        with file.open("rb") as stream:
            mode, data = os.fstat(stream.fileno()).st_mode, stream.read(_MAX_FILE_BYTES)
    except OSError as error:
        raise StoreKeyError(f"cannot read the key file {file}: {error.strerror}; {_GENERATE}") from error
    if not _DIGITS.fullmatch(data.strip()):
        raise StoreKeyError(f"{file} holds {len(data)} bytes that are no key; expected 64 hexadecimal digits")
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        _warn_of_readers(file, stat.filemode(mode))
    return bytes.fromhex(data.strip().decode("ascii"))


@functools.cache
def _warn_of_readers(file: Path, mode: str) -> None:
    _LOGGER.warning("the key file %s may be used by others than its owner (%s); `chmod 600` it", file, mode)


def keys_at_hand(store: object) -> list[bytes]:
    """The keys in the files that LIFELONG_KEY_FILE names, for the store that an error is to name.

    Raises StoreKeyError where it names no file, or one that holds no key.
    """
    files = [name for name in os.environ.get(KEY_VARIABLE, "").split(os.pathsep) if name]
    if not files:
        raise StoreKeyError(
            f"{store} is encrypted, and no key was given; name its file in --key-file or {KEY_VARIABLE}"
        )
    return [read_key_file(name) for name in files]


def wrap(key: bytes, data_key: bytes) -> Encryption:
    """How a marker holds a data key, so that `key` opens it."""
    _require_cryptography()
    from cryptography.hazmat.primitives.keywrap import aes_key_wrap

    return Encryption(wrapped=aes_key_wrap(key, data_key).hex())


def unwrap(keys: Iterable[bytes], encryptions: Iterable[Encryption], name: object) -> tuple[bytes, Encryption]:
    """The data key of the store called `name`, and which of the ways in which it is held one of the keys opened.

    Raises StoreKeyError where no key opens any of them: it is that of another store, or an earlier one.
    """
    _require_cryptography()
    from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap

    tried = list(keys)
    for encryption in encryptions:
        for key in tried:
            try:
                return aes_key_unwrap(key, bytes.fromhex(encryption.wrapped)), encryption
            except (InvalidUnwrap, ValueError):
                continue
    found = "the key at hand does not open it" if len(tried) == 1 else f"none of the {len(tried)} keys at hand opens it"
    raise StoreKeyError(
        f"{name} is encrypted, and {found}; expected the key that it was made with, or that of its last `rekey`; "
        f"name its file in --key-file or {KEY_VARIABLE}"
    )


def _require_cryptography() -> ModuleType:
    """The library, imported when first needed: stores in the clear do without it."""
    try:
        import cryptography
    except ImportError as error:
        raise StoreError(
            "encrypted stores need the library cryptography, which is not installed; "
            "install it with `pip install 'lifelong-edit[encryption]'`"
        ) from error
    return cryptography
