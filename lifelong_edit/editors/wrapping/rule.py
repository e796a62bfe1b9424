"""A rule with a wrapper around it at work: whatever the rule needs and fixes, and the wrapper's own `make`."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from lifelong_edit.bench import Bench
from lifelong_edit.editors.contract import Arrays, Editor, Given, Rule
from lifelong_edit.editors.registry import AROUND, rule_of
from lifelong_edit.editors.wrapping import WRAPPERS, within
from lifelong_edit.models import EditableModule, LoadedModel
from lifelong_edit.settings import StoreSettings


def make(bench: Bench) -> Editor:
    """The wrapper around its rule, which works on the same bench with settings of its own."""
    name, inner = inside(bench.settings)
    found: Editor = import_module(WRAPPERS[name].home).make(
        bench, inner.make(bench.under(within(bench.settings, inner)))
    )
    return found


def require(settings: StoreSettings, given: Given, modules: Sequence[EditableModule] = ()) -> None:
    """Refuse what the rule inside refuses; see `Rule.require`."""
    _, inner = inside(settings)
    inner.require(within(settings, inner), given, modules)


def fix(loaded: LoadedModel, settings: StoreSettings, given: Given) -> Arrays:
    """What the rule inside fixes; see `Rule.fix`."""
    _, inner = inside(settings)
    return inner.fix(loaded, within(settings, inner), given)


def inside(settings: StoreSettings) -> tuple[str, Rule]:
    """The wrapper that stands outermost, and the rule inside of it."""
    name, _, inner = settings.editor.partition(AROUND)
    return name, rule_of(inner)
