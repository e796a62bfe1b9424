"""What a store is made for: its model and its settings, as step 0 records them."""

from __future__ import annotations

import contextlib
import getpass
import os
from datetime import UTC, datetime
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec

from lifelong_edit.editors.registry import PLAIN, rule_of
from lifelong_edit.errors import StoreError, UsageError
from lifelong_edit.facts.checks import require_words
from lifelong_edit.settings import AUTHOR_VARIABLE, SUBJECT, StoreSettings
from lifelong_edit.stores import StepRecord, digest_bytes


class ModelIdentity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which model a store belongs to, and where it was loaded from."""

    source: str
    revision: str | None
    trust_remote_code: bool
    dtype: str
    fingerprint: str
    modules: dict[str, tuple[int, int]]
    """(d_in, d_out) of each edited module, in order of depth."""
    subject_modules: tuple[str, ...] = ()
    """Those of them that are edited at the tokens of the subject."""
    tokenizer: str | None = None
    """The fingerprint of the tokenizer; None in stores from before it was taken, which are content with any."""

    @property
    def entries(self) -> tuple[str, ...]:
        """The modules as `--modules` names them."""
        return tuple(name + (SUBJECT if name in self.subject_modules else "") for name in self.modules)


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, dict=True):
    """Everything fixed at `init` that is not an array. given: the settings as step 0 holds them, by name."""

    model: ModelIdentity
    given: dict[str, Any] = msgspec.field(name="settings")
    hypernetwork: str | None = None
    """Digest of the hypernetwork; None without one, and in stores of schema 1."""

    @classmethod
    def made(cls, model: ModelIdentity, settings: StoreSettings, hypernetwork: str | None) -> Config:
        """The config of a new store."""
        return cls(model=model, given=settings.told(), hypernetwork=hypernetwork)

    @cached_property
    def settings(self) -> StoreSettings:
        """The settings, of the type that the store's rule has.

        Those that the store is older than are at their defaults, or what they were `before` there was a choice.
        """
        kind = rule_of(str(self.given.get("editor", PLAIN))).settings
        return msgspec.convert({**kind.before, **self.given}, kind, strict=False)

    @cached_property
    def settings_digest(self) -> str:
        """The digest of the settings."""
        return digest_bytes(self.settings.encoded())

    def provenance(self) -> dict[str, Any]:
        """What every step says of its origin."""
        return {
            "code": metadata.version("lifelong-edit"),
            "fingerprint": self.model.fingerprint,
            "hypernetwork": self.hypernetwork,
            "settings_digest": self.settings_digest,
            "seed": self.settings.seed,
        }

    @classmethod
    def of(cls, record: StepRecord) -> Config:
        """The config in step 0. Raises StoreError where this release does not understand it."""
        try:
            found = msgspec.convert(record.provenance.get("config"), cls, strict=False)
            found.settings  # noqa: B018  (refused here, not where they are first asked for)
        except (msgspec.ValidationError, UsageError) as error:
            raise StoreError(
                f"the settings in step 0 are not those of this release ({error}); use the release that made the store, "
                f"{record.provenance.get('code')}"
            ) from error
        return found


def absolute(model: str) -> str:
    """A local folder or file by its whole path, so that the store opens from anywhere; other sources as they are."""
    path = Path(model).expanduser()
    return str(path.resolve()) if path.exists() else model


def author_of(given: str | None) -> str | None:
    """Who makes steps: as given, else LIFELONG_AUTHOR, else the login name; None where there is none of them.

    Raises UsageError where what is given is no text.
    """
    require_words("the author", given)
    if given is not None and given.strip():
        return given.strip()
    with contextlib.suppress(OSError, KeyError):  # KeyError before Python 3.13: a user id without a name
        return os.environ.get(AUTHOR_VARIABLE, "").strip() or getpass.getuser()
    return None


def now() -> str:
    """The time of a step, UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
