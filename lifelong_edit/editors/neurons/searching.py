"""The search for values: what a neuron adds to the layer where its gate is open, found with the neurons in place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from lifelong_edit.bench import Bench
from lifelong_edit.editors.neurons.grown import Grown
from lifelong_edit.editors.neurons.overlay import Neurons
from lifelong_edit.editors.neurons.reading import read
from lifelong_edit.editors.neurons.settings import NeuronsSettings
from lifelong_edit.editors.search.material import Asking
from lifelong_edit.editors.search.searching import Search, narrowed
from lifelong_edit.models import Encoded, Overlay
from lifelong_edit.tasks import Cutter
from lifelong_edit.tracing.rows import Row, draw


@dataclass
class Thinned(Asking):
    """What is asked of facts, and each prompt once more with words left out; plain answers have to end where they do.

    share: of the words behind the subject that are left out. bench: whose model is asked.
    """

    share: float
    bench: Bench

    def of(self, fact: int, *drawn: object) -> list[Row]:
        """The rows of a round, see `Asking.of`, and a thinned one."""
        plain = next((row for row in self.rows[fact] if row.form == "plain"), None)
        more = [] if plain is None or not self.share else [thinned(plain, self.share, plain.fact, *drawn)]
        return [ended(self.bench, row) for row in (*super().of(fact, *drawn), *more)]


def ended(bench: Bench, row: Row) -> Row:
    """A row whose answer has to end with its last word ("sitcom", not "sitcoms"); a turn ends by itself."""
    return row if row.form == "chat" else replace(row, encoded=bench.task.ended(bench.loaded, row.encoded))


def thinned(row: Row, share: float, *drawn: object) -> Row:
    """A row without a `share` of the tokens between its subject and its prompt's last one."""
    e = row.encoded
    free = range(e.subject[1], e.answer_start - 1)
    gone = {free[i] for i in draw(len(free), round(share * len(free)), "thinned", *drawn)}
    ids = [token for at, token in enumerate(e.ids) if at not in gone]
    short = len(e.ids) - len(ids)
    return replace(row, encoded=Encoded(tuple(ids), e.answer_start - short, e.subject))


class OfValues(Search):
    """D are the values themselves. grown: by module the neurons of all facts searched for; beside: those there.

    readers: as of `reading.read`, where a cutter is given; without one rows are asked whole.
    """

    settings: NeuronsSettings

    def __init__(
        self,
        *arguments: Any,
        grown: Mapping[str, Grown],
        beside: Sequence[tuple[str, Grown]],
        essence: Sequence[Row] = (),
        **options: Any,
    ) -> None:
        super().__init__(*arguments, **options)
        self._grown, self._beside, self._essence = grown, beside, essence
        self.readers: Mapping[str, str] = {}
        self._begun: dict[tuple[int, ...], Any] = {}

    def overlay(self, held: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> Overlay:
        """The neurons with the values found so far, and again with those of some facts, which gradients reach."""
        found = list(self._beside)
        for name, keys in held.items():
            grown = replace(self._grown[name], value=self.variables.right[name])
            found += [(name, grown), (name, replace(grown, gate=grown.gate[keys], value=right[name]))]
        return Neurons(found)

    def cut(self, rows: Sequence[Row]) -> tuple[Sequence[Row], Sequence[Any] | None]:
        """Rows from the first token on at which one of the gates opens, at the latest that of the subject."""
        if self.cutter is None:
            return rows, None
        before = [row.encoded.ids[: row.encoded.subject[0]] for row in rows]
        if missing := [ids for ids in dict.fromkeys(before) if ids not in self._begun]:
            self._begin(self.cutter, missing)
        begun = [self._begun[ids] for ids in before]
        ends = self.cutter.ends_of([row.encoded for row in rows], begun)
        return [replace(row, encoded=end) for row, end in zip(rows, ends, strict=True)], begun

    def _begin(self, cutter: Cutter, texts: Sequence[tuple[int, ...]]) -> None:
        """Read the beginnings of texts, with the neurons beside in place, up to where a searched one would act."""
        bench, s = self.bench, self.settings
        with bench.loaded.at(Neurons(self._beside)), narrowed(bench.loaded, s):
            free = {ids: len(ids) for ids in texts}
            for i, name, states in read(
                bench.loaded, self.readers, [Encoded.of(ids) for ids in texts], s.micro_batch, "everywhere"
            ):
                opened = self._grown[name].amplitude(states).ne(0).any(-1).nonzero()
                free[texts[i]] = min(free[texts[i]], int(opened[0]) if len(opened) else len(texts[i]))
            begun = cutter.begin([ids[: free[ids]] for ids in texts], s.micro_batch)
        self._begun |= dict(zip(texts, begun, strict=True))

    def kept(self, facts: Sequence[int], *drawn: object) -> tuple[list[Row], float]:
        """What the base model says of the subjects by themselves."""
        return [self._essence[i] for i in facts] if self._essence else [], self.settings.essence
