"""The settings of the hooks."""

from __future__ import annotations

from lifelong_edit.editors.locate.settings import LocateSettings
from lifelong_edit.settings import Positive


class CoachHookSettings(LocateSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of `coachhook`, beside those of locate-then-edit."""

    editor: str = "coachhook"
    """The editing rule."""
    alpha: Positive = 2.2
    """How many standard deviations a token has to stand out from those before it, for a hook to step in; less where a
    fact in force stands out less."""
