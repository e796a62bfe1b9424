"""Where neurons are grown, and what follows of it: at a fact's subject, or where a classifier reads a text as a whole.

At a subject a gate is for a name, whatever is said of it. A classifier has one place at which all of a text is read;
there a gate is for a claim, in whatever words, and needs no subject.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec
import torch
from torch import Tensor

from lifelong_edit.bench import Bench
from lifelong_edit.editors.neurons.gates import Regression, Shut
from lifelong_edit.editors.neurons.reading import Where, read, reader_of, states_of
from lifelong_edit.editors.neurons.settings import NeuronsSettings
from lifelong_edit.editors.search.contexts import sentences_in
from lifelong_edit.editors.search.material import anchored_rows
from lifelong_edit.errors import BadInputError
from lifelong_edit.facts import Fact, Probe, mentions, put_in
from lifelong_edit.models import Encoded, LoadedModel
from lifelong_edit.models.families import Positions, shape_of
from lifelong_edit.tasks import task_of
from lifelong_edit.tracing.rows import Row, RowKind, by_fact, fact_rows, shuffled

ODD = 0.25
"""How far from 1 the constant reading is at a token that is unlike all others."""
FAR, FAR_WEIGHT = 100.0, 1e-4
"""How far below zero gates have to be at all tokens but the one where a text is read as a whole, and its weight.

So far that none opens there, for so small a weight that it costs nothing of what tells claims apart: of 1,024 gates on
MiniLM none opened at any of 3,483 tokens at −100; at −30 some did at two fifths of them, at −1 at all.
"""
LEVEL_RIDGE = 1e-3
"""λ of what is near 1 wherever a text is read as a whole: to be so of any text is more than to be so of those read."""
NEAR = -0.3
"""From which reading on what is not a fact's own is told apart by a weight of its own, where a text is read whole."""


@dataclass(frozen=True)
class Closed:
    """Where gates are shut from `init` on. kept: (n, d) what is read of preserved prompts, and what is beside them.

    level: (d,) a reading that is near 1 wherever gates may open, see `Grown`.
    """

    shut: Shut
    kept: Tensor
    level: Tensor


class Site(Protocol):
    """What differs by where neurons are grown."""

    @property
    def positions(self) -> Positions:
        """The editing positions of the modules at which they are grown."""

    @property
    def around(self) -> Where:
        """At which tokens of prompts with other subjects gates are shut."""

    @property
    def unit(self) -> float:
        """How many root mean squares of the layer's states the unit of a search's steps is."""

    @property
    def held(self) -> torch.dtype:
        """In what `init` keeps normal equations: as exactly as the gates' ridge asks for."""

    def asking(self, s: NeuronsSettings) -> NeuronsSettings:
        """The settings without what cannot be asked here."""

    def rows(
        self,
        bench: Bench,
        s: NeuronsSettings,
        facts: Sequence[Fact],
        kind: RowKind,
        replaced: Mapping[str, Sequence[Fact]] | None = None,
    ) -> dict[str, list[Row]]:
        """By digest the rows of each fact, its prompt first."""

    def theme(self, asked: Fact | Probe) -> str:
        """What a gate is for, case-folded: facts with the same open together."""

    def cut(self, fact: Fact) -> Fact | None:
        """The fact with a part of its subject, at which its gate has to be shut; None where there is none."""

    def near(self, opens: float) -> float:
        """From which reading on a state is told apart by a weight of its own, where gates open at `opens`."""

    def alone(self, loaded: LoadedModel, s: NeuronsSettings, text: Sequence[str]) -> list[Encoded]:
        """What of ordinary text is read as preserved prompts are, beside them."""

    def closed(
        self, loaded: LoadedModel, s: NeuronsSettings, text: Sequence[Encoded], near: Sequence[Encoded]
    ) -> dict[str, Closed]:
        """Where gates are shut, by output projection. text: ordinary; near: preserved prompts, and what is alone."""


class AtSubject:
    """At the last token of the subject, where the whole name is read."""

    positions: Positions = "subject"
    around: Where = "everywhere"
    unit: float = 1.0
    held: torch.dtype = torch.float32

    def asking(self, s: NeuronsSettings) -> NeuronsSettings:
        """All of them."""
        return s

    def rows(
        self,
        bench: Bench,
        s: NeuronsSettings,
        facts: Sequence[Fact],
        kind: RowKind,
        replaced: Mapping[str, Sequence[Fact]] | None = None,
    ) -> dict[str, list[Row]]:
        """Anchored, see `anchored_rows`."""
        return anchored_rows(bench, s, facts, kind, replaced)

    def theme(self, asked: Fact | Probe) -> str:
        """The subject."""
        return (asked.prompt if asked.subject is None else asked.subject).casefold()

    def cut(self, fact: Fact) -> Fact | None:
        """With the last word of its subject alone."""
        return last_word_of(fact)

    def near(self, opens: float) -> float:
        """Where a gate opens."""
        return opens

    def alone(self, loaded: LoadedModel, s: NeuronsSettings, text: Sequence[str]) -> list[Encoded]:
        """Nothing: all of its tokens are read."""
        return []

    def closed(
        self, loaded: LoadedModel, s: NeuronsSettings, text: Sequence[Encoded], near: Sequence[Encoded]
    ) -> dict[str, Closed]:
        """At all tokens: the mean over those of text, and over those of preserved prompts times `around`.

        And once more over the tokens of text alone that are unlike all others, at which no direction is what it is
        everywhere else: a few in ten thousand have states many times as large as the rest, and there every gate would
        open at once, each by as much as there is nothing to keep it shut.
        """
        shut = _none(loaded)
        seen = _beside(shut, loaded, s, text, "everywhere")
        _beside(shut, loaded, s, near, "everywhere", s.around)
        ridge, found = s.gating(self.positions).gate_ridge, {}
        for name, equations in shut.items():
            states = torch.cat(seen.pop(name))
            odd = states[(states @ Regression(equations, ridge).constant() - 1).abs() > ODD]
            equations = equations.beside(odd, 1 / max(1, len(odd)))
            found[name] = Closed(equations, states[:0], Regression(equations, ridge).constant())
        return found


class AtAnswer:
    """Where a classifier's head reads, which has read all of the text."""

    positions: Positions = "answer"
    around: Where = "answer"
    unit: float = 10.0  # a layer norm comes next, and one value has to outweigh all of a text
    held: torch.dtype = torch.float64

    def asking(self, s: NeuronsSettings) -> NeuronsSettings:
        """A claim has no beginning to stand behind, and no subject of which words or what is said could be held."""
        return s.replace(contexts=0, thinned=0.0, essence=0.0)

    def rows(
        self,
        bench: Bench,
        s: NeuronsSettings,
        facts: Sequence[Fact],
        kind: RowKind,
        replaced: Mapping[str, Sequence[Fact]] | None = None,
    ) -> dict[str, list[Row]]:
        """As they are."""
        return by_fact(facts, fact_rows(bench.loaded, facts, s.phrasings, kind, replaced=replaced))

    def theme(self, asked: Fact | Probe) -> str:
        """The claim."""
        return asked.prompt.casefold()

    def cut(self, fact: Fact) -> Fact | None:
        """None: what is read is a claim, and no name."""
        return None

    def near(self, opens: float) -> float:
        """Far from opening: what is like the claim is held back before it opens."""
        return min(NEAR, opens)

    def alone(self, loaded: LoadedModel, s: NeuronsSettings, text: Sequence[str]) -> list[Encoded]:
        """Its sentences, each of which could be a claim: as many as `text_tokens` has room for, drawn."""
        sentences, room = sentences_in(text), s.text_tokens
        found: list[Encoded] = []
        for i in shuffled(len(sentences), "sentences", s.seed):
            with contextlib.suppress(BadInputError):  # one that the model has no room for
                found.append(Encoded.of(task_of(loaded).encode_question(loaded, sentences[i])))
                room -= len(found[-1].ids)
            if room < 0:
                break
        return found

    def closed(
        self, loaded: LoadedModel, s: NeuronsSettings, text: Sequence[Encoded], near: Sequence[Encoded]
    ) -> dict[str, Closed]:
        """At the place itself the mean over all texts and prompts; far below at all of their other tokens."""
        shut = _none(loaded)
        _beside(shut, loaded, s, [*text, *near], "answer")
        levels = {name: Regression(equations, LEVEL_RIDGE).constant() for name, equations in shut.items()}
        _beside(shut, loaded, s, [*text, *near], "elsewhere", FAR_WEIGHT, FAR)
        kept = states_of(loaded, readers_of(loaded), near, s.micro_batch, "answer")
        none = {name: torch.empty(0, len(equations.total)) for name, equations in shut.items()}
        held = {name: torch.cat([none[name], *(t.cpu() for t in states)]) for name, states in kept.items()}
        return {name: Closed(equations, held[name], levels[name]) for name, equations in shut.items()}


SITES: Mapping[Positions, Site] = {"subject": AtSubject(), "answer": AtAnswer()}


def readers_of(loaded: LoadedModel) -> dict[str, str]:
    """By output projection the matrix that reads what its MLP is given."""
    return {module.name: reader_of(loaded.model, module.name) for module in loaded.modules}


def _none(loaded: LoadedModel) -> dict[str, Shut]:
    return {n: Shut.none(shape_of(loaded.model.get_submodule(r))[0]) for n, r in readers_of(loaded).items()}


def _beside(
    shut: dict[str, Shut],
    loaded: LoadedModel,
    s: NeuronsSettings,
    texts: Sequence[Encoded],
    where: Where,
    weight: float = 1.0,
    depth: float = 1.0,
) -> dict[str, list[Tensor]]:
    """Add the mean over some tokens of texts, times `weight`, to what is shut; their states, (n, d) each."""
    seen: dict[str, list[Tensor]] = {name: [] for name in shut}
    for _, name, states in read(loaded, readers_of(loaded), texts, s.micro_batch, where):
        seen[name].append(states.cpu())
    for name, parts in seen.items():
        share = weight / max(1, sum(map(len, parts)))
        for states in parts:
            shut[name] = shut[name].beside(states, share, depth)
    return seen


def last_word_of(fact: Fact) -> Fact | None:
    """The fact as if its subject were the last of its words alone; None where it has no other.

    "Theatre" in the place of "Bush Theatre": a gate that does not tell these apart opens at half of all texts.
    """
    words = (fact.subject or "").split()
    if len(words) < 2 or not mentions(fact.prompt, fact.subject):
        return None
    return msgspec.structs.replace(
        fact, subject=words[-1], prompt=put_in(fact.prompt, fact.subject, words[-1]), rephrases=()
    )
