"""What a search asks: the facts in their own words and behind contexts, and prompts whose answers must stay."""

from __future__ import annotations

import contextlib
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace

from lifelong_edit.bench import Bench
from lifelong_edit.editors.search.settings import SearchingSettings
from lifelong_edit.errors import BadInputError
from lifelong_edit.facts import Fact, Probe, mentions, put_in
from lifelong_edit.tracing.derived import asked_of
from lifelong_edit.tracing.rows import Row, RowKind, by_fact, draw, fact_rows


def anchored(row: Row) -> Row:
    """The row with one token in the place of its subject's: the last of them, or the prompt's last without a mention.

    There the model has read the whole name, and there a fact is edited. Not at a text's very first token, which most
    models make a place to rest attention on, with the same state whatever stands there: at the one behind it then.
    """
    start, end = row.encoded.subject
    last = end if end > start else row.encoded.answer_start
    last = min(max(last, 2), row.encoded.answer_start)
    return replace(row, encoded=replace(row.encoded, subject=(last - 1, last)))


def anchored_rows(
    bench: Bench,
    s: SearchingSettings,
    facts: Sequence[Fact],
    kind: RowKind = "new",
    replaced: Mapping[str, Sequence[Fact]] | None = None,
) -> dict[str, list[Row]]:
    """By digest the rows of each fact, its prompt first, anchored."""
    return by_fact(facts, map(anchored, fact_rows(bench.loaded, facts, s.phrasings, kind, replaced=replaced)))


def prompts_in(rows: Sequence[Row]) -> list[Row]:
    """A fact's prompt in each of its forms: the first row of each. rows: of one fact, its prompt first."""
    first = {row.form: row for row in reversed(rows)}
    return list(reversed(first.values()))


@dataclass
class Asking:
    """What a search may ask of facts. rows: by number of fact those in its own words; behind: those behind contexts."""

    rows: list[list[Row]]
    behind: list[list[Row]]

    def of(self, fact: int, *drawn: object) -> list[Row]:
        """What a round asks of a fact: its prompt in each form, another phrasing, and a context before its prompt."""
        prompt = self.rows[fact][0]
        chosen = prompts_in(self.rows[fact])
        others = [row for row in self.rows[fact] if not any(row is other for other in chosen)]
        for rows in (others, self.behind[fact]):
            chosen += [rows[i] for i in draw(len(rows), 1, "of a fact", prompt.fact, *drawn)]
        return chosen


@dataclass
class Material(Asking):
    """With preserved prompts, whose answers must stay; some of them are asked in a round."""

    preserved: list[Row]

    def held(self, count: int, *drawn: object) -> list[Row]:
        """The preserved prompts that a round asks."""
        return [self.preserved[i] for i in draw(len(self.preserved), count, "held", *drawn)]

    def counts(self) -> dict[str, int]:
        """How many rows there are, by kind."""
        own = [row for rows in self.rows for row in rows]
        found = {kind: sum(row.kind == kind for row in own) for kind in ("new", "rehearsal")}
        return found | {"behind contexts": sum(map(len, self.behind)), "preserved": len(self.preserved)}


def behind_contexts(bench: Bench, fact: Fact, contexts: Sequence[str], kind: RowKind) -> list[Row]:
    """Rows of a fact's prompt behind each context, anchored; none that the model has no room for."""
    rows = []
    for context in contexts:
        with contextlib.suppress(BadInputError):
            encoded = bench.task.encode(bench.loaded, context + fact.prompt, fact.answer, fact.subject)
            rows.append(anchored(Row(encoded, kind, 1.0, fact.digest)))
    return rows


def swapped_prompts(
    facts: Sequence[Fact], subjects: Sequence[str], count: int, taken: Container[str], *drawn: object
) -> list[Probe]:
    """Of each fact its prompt with up to `count` other subjects in the place of its own: what an edit spoils first.

    subjects: those to draw from. taken: case-folded ones that facts speak of; their answers may have to change.
    """
    free = sorted({s for s in subjects if s.casefold() not in taken})
    found: dict[str, Probe] = {}
    for fact in facts:
        if mentions(fact.prompt, fact.subject):
            for i in draw(len(free), count, "swapped", fact.digest, *drawn):
                prompt = put_in(fact.prompt, fact.subject, free[i])
                found.setdefault(prompt, Probe(prompt, None, free[i], fact.relation, asked_of(fact, free[i])))
    return list(found.values())
