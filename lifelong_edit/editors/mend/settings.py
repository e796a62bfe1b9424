"""The settings of MEND."""

from __future__ import annotations

from typing import Literal

from lifelong_edit.settings import Count, StoreSettings


class MendSettings(StoreSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of `mend`."""

    editor: str = "mend"
    """The editing rule."""
    phrasings: Count = 0
    """How many rephrases that a fact brings are taught beside its prompt."""
    begins: Literal["descent", "published"] = "descent"
    """What an untrained network does. `descent`: it goes down the facts' loss, by as much as `gradient` would ask for.
    `published`: η is 1e-4 and added, which goes up, until training has turned the sign."""
