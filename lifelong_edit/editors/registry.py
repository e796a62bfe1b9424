"""The editing rules by name."""

from __future__ import annotations

from lifelong_edit.editors.contract import Editor
from lifelong_edit.editors.malmen.network import NetworkSet
from lifelong_edit.editors.malmen.rule import MalmenEditor
from lifelong_edit.editors.ridge.gradient import SHARE, GradientEditor
from lifelong_edit.editors.ultraedit.rule import UltraEditor
from lifelong_edit.errors import UsageError
from lifelong_edit.settings import Settings


def make_editor(settings: Settings, networks: NetworkSet | None) -> Editor:
    """The editor that the settings name. Raises UsageError where it needs a network and there is none."""
    if settings.editor == "gradient":
        return GradientEditor(SHARE if settings.eta is None else settings.eta, settings.kappa, settings.trust)
    if settings.editor == "ultraedit":
        return UltraEditor(1e-6 if settings.eta is None else settings.eta, centre=settings.ask == "published")
    if networks is None:
        raise UsageError(
            "editor malmen needs a trained hypernetwork and none was given; train one with `lifelong-edit train` and "
            "name its folder with --hypernetwork, or choose --editor gradient"
        )
    if (networks.config.form == "published") != (settings.ask == "published"):
        raise UsageError(
            f"the hypernetwork was trained for the {networks.config.form} solve, the setting ask is {settings.ask!r}; "
            "set them alike"
        )
    return MalmenEditor(networks, settings.kappa)
