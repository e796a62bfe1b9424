"""Which rows a solve has: the facts that are taught, earlier ones, preserved prompts."""

from __future__ import annotations

from collections.abc import Container, Sequence

from lifelong_edit.bench import Bench, State
from lifelong_edit.editors.contract import Lesson
from lifelong_edit.editors.ridge.settings import RidgeSettings
from lifelong_edit.facts import Fact
from lifelong_edit.tracing.derived import derived_rows
from lifelong_edit.tracing.rows import AnyOf, Row, draw, fact_rows, subjects_of


def select_rows(bench: Bench, s: RidgeSettings, state: State, lesson: Lesson, live: Sequence[str]) -> list[Row]:
    """The rows of a batch: new facts, a sample of earlier live ones, preserved prompts near the batch.

    live: digests of the live facts that may be rehearsed, sorted.
    """
    facts = lesson.facts
    batch = tuple(f.digest for f in facts)
    rows = fact_rows(bench.loaded, facts, s.phrasings, replaced=lesson.replaced)
    rows += fact_rows(bench.loaded, rehearsed(state, live, s.rehearse, s.seed, batch), s.phrasings, "rehearsal")

    def known() -> list[Fact]:
        return [*facts, *(state.live[digest] for digest in live)]

    if s.preserved and bench.preserved.probes:
        near = bench.centred_keys(lesson.conflict or bench.conflict_of(facts), facts)
        subjects = changed_subjects(state, lesson)
        rows += bench.preserved.rows(s.preserved, near, s.preserved_weight, subjects, s.seed, state.digest, batch)
        rows += derived(bench, s, known(), s.derived, s.seed, state.digest, batch) if s.derived else []
    elif s.preserved:
        rows += derived(bench, s, known(), s.preserved, s.seed, state.digest, batch)
    return rows


def rehearsed(state: State, live: Sequence[str], count: int, seed: int, batch: tuple[str, ...]) -> list[Fact]:
    """A sample of earlier live facts, drawn by the state and the batch; live: digests to draw from, sorted."""
    return [state.live[live[i]] for i in draw(len(live), count, "rehearsal", seed, state.digest, batch)]


def derived(bench: Bench, s: RidgeSettings, facts: Sequence[Fact], count: int, *parts: object) -> list[Row]:
    """Preserved rows made from the facts themselves, see `derived_rows`."""
    options = {"tokens": s.preserved_tokens, "micro_batch": s.micro_batch}
    return derived_rows(bench.loaded, facts, count, *parts, weight=s.preserved_weight, **options)


def changed_subjects(state: State, lesson: Lesson) -> Container[str]:
    """Case-folded subjects of a batch's facts, of all live ones, and hidden ones: prompts about them may change.

    For asking, and only until the state changes.
    """
    return AnyOf(lesson.hidden, subjects_of(lesson.facts), state.subjects())


def rows_to_be_ready_with(rows: Sequence[Row], recalls: bool) -> list[Row]:
    """The rows of a batch that its rule is made ready with: all of new facts, the first of each rehearsed one.

    Of rehearsed facts one row each is enough: they are there so that a metric is not the new batch's alone. recalls:
    whether the rule wants them.
    """
    own, seen = list[Row](), set[str | None]()
    for row in rows:
        recalled = recalls and row.kind == "rehearsal" and row.fact not in seen
        if row.kind == "new" or recalled:
            own.append(row)
            seen.add(row.fact)
    return own
