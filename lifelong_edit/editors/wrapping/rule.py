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
    """Refuse what the rule inside and the wrapper refuse; see `Rule.require`."""
    name, inner = inside(settings)
    inner.require(within(settings, inner), given, modules)
    if (own := getattr(import_module(WRAPPERS[name].home), "require", None)) is not None:
        own(settings, given, modules)


def fix(loaded: LoadedModel, settings: StoreSettings, given: Given) -> Arrays:
    """What the rule inside and the wrapper fix, each by names of its own; see `Rule.fix`."""
    name, inner = inside(settings)
    own = getattr(import_module(WRAPPERS[name].home), "fix", None)
    beside: Arrays = {} if own is None else own(loaded, settings, given)
    return {**inner.fix(loaded, within(settings, inner), given), **beside}


def inside(settings: StoreSettings) -> tuple[str, Rule]:
    """The wrapper that stands outermost, and the rule inside of it."""
    name, _, inner = settings.editor.partition(AROUND)
    return name, rule_of(inner)
