"""Wrappers: what is done to any rule's weight shift, or stands in front of it. `rect+memit` is `memit` within `rect`.

A wrapper is a line in `WRAPPERS`, a module of this package with its `make`, and the settings that it adds to those of
the rule inside. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, get_type_hints

import msgspec

from lifelong_edit.editors.contract import Rule
from lifelong_edit.editors.li.settings import LiSettings
from lifelong_edit.editors.locate.settings import LocateSettings
from lifelong_edit.editors.registry import AROUND
from lifelong_edit.editors.retrieval import RULE as RETRIEVAL
from lifelong_edit.editors.tries import Tries
from lifelong_edit.editors.wrapping.settings import NasSettings, PruneSettings, RectSettings, SimieSettings
from lifelong_edit.errors import UsageError
from lifelong_edit.settings import StoreSettings
from lifelong_edit.stores import Fold


@dataclass(frozen=True, kw_only=True)
class Wrapper:
    """The declaration of a wrapper.

    settings, adds: a struct, and which of its fields a wrapped rule has beside its own. parts: what it keeps beside
    what the rule does. relearns: what it does to what the rule makes of all facts. general, statistics: as of `Rule`.
    front: the rule that a wrapper puts in front of the one inside, which may then be one whose states are more than
    shifted weights; None for a wrapper that makes another shift of each.
    """

    name: str
    title: str
    reference: str
    settings: type[msgspec.Struct]
    adds: tuple[str, ...]
    relearns: str
    parts: Mapping[str, Fold] | None = None
    general: bool = False
    statistics: bool = False
    front: Rule | None = None

    @property
    def home(self) -> str:
        """The module with its `make(bench, inner)`."""
        return f"lifelong_edit.editors.wrapping.{self.name}"


WRAPPERS: Mapping[str, Wrapper] = {
    wrapper.name: wrapper
    for wrapper in (
        Wrapper(
            name="li",
            title="a share of the shift, chosen on facts and preserved prompts (1-LI)",
            reference="1-LI, Brown et al., arXiv 2303.00046",
            settings=LiSettings,
            adds=("alpha", "grid", "validation"),
            relearns="interpolated towards the base",
            general=True,
        ),
        Wrapper(
            name="rect",
            title="of each shift the entries that change their weight most (RECT)",
            reference="RECT, Gu et al., arXiv 2401.04700",
            settings=RectSettings,
            adds=RectSettings.__struct_fields__,
            relearns="and of its shift the entries that change their weight most",
        ),
        Wrapper(
            name="prune",
            title="great singular values of the summed shift made smaller (PRUNE)",
            reference="PRUNE, Ma et al., arXiv 2405.16821",
            settings=PruneSettings,
            adds=PruneSettings.__struct_fields__,
            relearns="its great singular values made smaller",
        ),
        Wrapper(
            name="simie",
            title="each batch edited from the base, joined by least squares (SimIE)",
            reference="SimIE, ICML 2025",
            settings=SimieSettings,
            adds=SimieSettings.__struct_fields__,
            relearns="as one batch of the least squares over the facts' tokens",
            statistics=True,
        ),
        Wrapper(
            name="nas",
            title="searched hidden states of one length (NAS)",
            reference="NAS, arXiv 2602.02543",
            settings=NasSettings,
            adds=NasSettings.__struct_fields__,
            relearns="with hidden states of one length",
            parts={"lengths": "replace"},
        ),
        Wrapper(
            name="retrieval",
            title=f"{RETRIEVAL.title}, in front of the edited model",
            reference=RETRIEVAL.reference,
            settings=RETRIEVAL.settings,
            adds=("mentioned", "encoder", "false_alarms", "most", "wording", "chat_wording", "room"),
            relearns="what is put before questions is the live facts themselves",
            front=RETRIEVAL,
        ),
    )
}


OTHERS = "expected another rule; `lifelong-edit editors` lists the wrappers of each"


def refusal(name: str, inner: Rule) -> str:
    """Why a wrapper cannot stand around a rule, in a sentence; empty where it can."""
    within = inner.name.split(AROUND)
    if WRAPPERS[name].front is not None:
        if inner.by_facts:
            return f"found {name} around {inner.name}: the rule {inner.name} remembers the live facts itself; {OTHERS}"
        return ""
    if not inner.shifts:
        return f"found {name} around {inner.name}: the rule {inner.name} does not bring weight shifts alone; {OTHERS}"
    if name in within[:-1]:
        return f"found {name} around itself in {name}{AROUND}{inner.name}; expected it once"
    if "prune" in within[:-1]:
        return (
            f"found {name} around prune in {name}{AROUND}{inner.name}; prune looks at the sum of all shifts, so it "
            "stands outermost; name it first"
        )
    if name == "nas" and not (issubclass(inner.settings, LocateSettings) and len(within) == 1):
        return (
            f"found nas around {inner.name}; expected a rule that searches hidden states at the subject (memit, "
            "alphaedit and others of locate-then-edit), with all other wrappers around nas"
        )
    return ""


def wrapped(name: str, inner: Rule) -> Rule:
    """The declaration of a rule with a wrapper around it.

    Raises UsageError where there is no such wrapper, or it cannot stand around the rule.
    """
    if name not in WRAPPERS:
        first = f"; a wrapper stands first, as in {inner.name}{AROUND}{name}" if inner.name in WRAPPERS else ""
        raise UsageError(f"found the wrapper {name!r}; expected one of {', '.join(WRAPPERS)}{first}")
    if reason := refusal(name, inner):
        raise UsageError(reason)
    wrapper, whole = WRAPPERS[name], f"{name}{AROUND}{inner.name}"
    front = inner if wrapper.front is None else wrapper.front
    relearns = f"{inner.relearns}; {wrapper.relearns}" if inner.relearns else ""
    return replace(
        inner,
        name=whole,
        title=f"{wrapper.title}, around {inner.title}",
        reference=f"{wrapper.reference}; {inner.reference}",
        settings=_settings(name, inner.settings, whole),
        home="lifelong_edit.editors.wrapping.rule",
        by_facts=front.by_facts,
        tasks=inner.tasks & front.tasks,
        exports=inner.exports & front.exports,
        shifts=front.shifts,
        parts={**inner.parts, **(wrapper.parts or {})},
        general=inner.general or wrapper.general,
        statistics=inner.statistics or wrapper.statistics,
        network=False,
        tries=Tries(),
        relearns=relearns,
    )


@cache
def _settings(name: str, inner: type[StoreSettings], whole: str) -> type[StoreSettings]:
    """The settings of a rule with those of a wrapper behind them: the same class at every call."""
    wrapper = WRAPPERS[name]
    hints = get_type_hints(wrapper.settings, include_extras=True)
    defaults = {field.name: field.default for field in msgspec.structs.fields(wrapper.settings)}
    fields: list[Any] = [("editor", str, whole)]
    fields += [(field, hints[field], defaults[field]) for field in wrapper.adds]
    order = (*inner.order, *wrapper.adds) if inner.order else ()

    def check(settings: StoreSettings) -> None:
        inner.__post_init__(settings)
        wrapper.settings(**{field: getattr(settings, field) for field in wrapper.adds})  # refuses what it refuses alone

    found: type[StoreSettings] = msgspec.defstruct(  # type: ignore[assignment]
        f"{name.capitalize()}{inner.__name__}",
        fields,
        bases=(inner,),
        namespace={
            "order": order,
            "__doc__": f"Of `{whole}`: those of the rule inside, and the wrapper's.",
            "__post_init__": check,
        },
        module=__name__,
        frozen=True,
        kw_only=True,
        forbid_unknown_fields=True,
    )
    return found


def within(settings: StoreSettings, inner: Rule) -> StoreSettings:
    """The settings of the rule inside, from those of the rule with a wrapper around it."""
    given = {name: getattr(settings, name) for name in inner.settings.__struct_fields__}
    return inner.settings(**{**given, "editor": inner.name})
