"""The benches of trials: one model, and what `init` would fix, measured again only where a change reaches it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lifelong_edit.bench import Bench, Fixed, prepare
from lifelong_edit.editors.contract import Given, Rule
from lifelong_edit.editors.tries import LAYER, Number
from lifelong_edit.facts import Probe
from lifelong_edit.models import LoadedModel
from lifelong_edit.models.families import entries_up_to, find_modules
from lifelong_edit.settings import StoreSettings

KEPT = 2
"""Of how many places what was fixed is held at a time: a search comes and goes between two, and grams are large."""


class Benches:
    """Makes the bench of a trial from its changes: settings by name, and the highest edited layer as `LAYER`.

    settings: of the rule, with all settled that the model settles. Raises UsageError where a store of the rule could
    not be made with them, or with these modules.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        rule: Rule,
        settings: StoreSettings,
        text: Sequence[str],
        preserve: Sequence[Probe],
    ) -> None:
        self.loaded, self.rule, self.settings = loaded, rule, settings
        self.given = Given({}, text, preserve)
        rule.require_kind(loaded.family.kind, loaded.modules)
        rule.require(settings, self.given, loaded.modules)
        self._kept: dict[tuple[Number | None, ...], tuple[LoadedModel, Fixed]] = {}

    @property
    def layer(self) -> int:
        """The highest layer that is edited where no change says another."""
        return max(module.layer for module in self.loaded.modules)

    def at(self, changes: Mapping[str, Number]) -> Bench:
        """The bench with changes made."""
        settings = self.changed(self.settings, changes)
        reaches = (LAYER, *sorted(self.rule.tries.fixing))
        key = tuple(changes.get(name) for name in reaches)
        loaded, fixed = found = self._kept.pop(key, None) or self._measured(changes, settings)
        while len(self._kept) >= KEPT:
            del self._kept[next(iter(self._kept))]
        self._kept[key] = found
        return Bench(loaded, settings, fixed)

    def _measured(self, changes: Mapping[str, Number], settings: StoreSettings) -> tuple[LoadedModel, Fixed]:
        loaded = self.loaded.editing(settings.modules) if LAYER in changes else self.loaded
        given, whole = self.given, self.rule.statistics
        kept = self.rule.fix(loaded, settings, given)
        fixed = prepare(loaded, settings, text=given.text, preserve=given.preserve, rule=kept, statistics=whole)
        return loaded, fixed

    def changed(self, settings: StoreSettings, changes: Mapping[str, Number]) -> StoreSettings:
        """Settings with changes made; where the layer changes they name the modules."""
        own: dict[str, object] = {name: value for name, value in changes.items() if name != LAYER}
        if LAYER in changes:
            entries = entries_up_to(int(changes[LAYER]), self.rule.places, self.loaded.family.kind)
            found = find_modules(self.loaded.model, self.loaded.family, entries)
            own["modules"] = tuple(module.entry for module in found)
        return settings.replace(**own)
