"""What is asked after each step of a stream, at a bounded cost: a row of the forgetting matrix."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from lifelong_edit.eval.metrics.verdicts import Result, ask_any, ask_unchanged, base_answers
from lifelong_edit.eval.reports.questions import fits
from lifelong_edit.facts import MULTI_HOP, Fact, Probe
from lifelong_edit.models import LoadedModel, Question
from lifelong_edit.policies import choose_sample, edited_identities, probe_identities
from lifelong_edit.stores import Measure, Measurement, Outcome
from lifelong_edit.stores.digests import digest_bytes
from lifelong_edit.tasks import leading, questions_of, text_of
from lifelong_edit.timeline import Timeline
from lifelong_edit.timeline.locking import Lock, locked
from lifelong_edit.tracing.rows import subjects_of, unseen_of

_Asked = tuple[Fact | None, int, Measure, Question, str]
"""Fact (None: a guard prompt), the step that taught it, measure, prompt, and target where there is one."""


class Sampler:
    """Asks a sample of a timeline's live facts; made once for a stream, it remembers what the base model says.

    Of each fact: its prompt (efficacy), in a store of both forms also as a turn (chat), one phrasing that is no row of
    any solve (generality), one neighbour that the stream does not edit (locality: the answer of the base model), and
    one question whose answer follows from it alone and one that takes others as well (portability, multihop), where it
    has them; and guard prompts, preserved ones that are never rows, a quarter as many as facts. Each
    teacher-forced and by generation.
    """

    def __init__(self, timeline: Timeline, size: int | None) -> None:
        """size: facts asked at most; None: all that are live, and all guard prompts."""
        self._timeline, self._size = timeline, size
        self._facts: dict[str, Fact] = {}
        self._aliases: dict[tuple[Question, str], tuple[str, ...]] = {}
        self._base: dict[tuple[Question, str | None], tuple[int, ...]] = {}

    @property
    def lock(self) -> Lock:
        """That of the timeline."""
        return self._timeline.lock

    @locked
    def __call__(self, step: int) -> Measurement:
        """Ask at the state of a step. Nothing is kept in the store."""
        began = time.process_time()
        timeline, seed = self._timeline, self._timeline.settings.seed
        line = timeline.history().line(step)
        live, taught = timeline.history().fold(step).live, dict[str, int]()
        for record in line:
            taught.update((digest, record.step) for digest in record.added if digest in live)
        cohorts: dict[int, list[str]] = {}
        for digest, number in taught.items():
            cohorts.setdefault(number, []).append(digest)
        state = timeline.history().state_of(step)
        chosen = cohorts if self._size is None else choose_sample(cohorts, self._size, seed, state)
        ever = [digest for record in line for digest in record.added]
        with timeline.at(step).standing() as loaded:
            asked, dropped = self._questions(loaded, chosen, ever)
            outcomes = [*self._ask(loaded, asked), *self._ask_guards(loaded, ever, seed)]
        return Measurement(
            step=state,
            weights_digest=timeline.show(state).weights_digest,
            time=datetime.now(UTC).isoformat(timespec="seconds"),
            sample=self._size,
            seed=seed,
            live={number: len(facts) for number, facts in sorted(cohorts.items())},
            outcomes=outcomes,
            dropped=dropped,
            seconds=time.process_time() - began,
        )

    def _questions(
        self, loaded: LoadedModel, chosen: Mapping[int, Sequence[str]], ever: Sequence[str]
    ) -> tuple[list[_Asked], int]:
        known = [digest for digest in dict.fromkeys(ever) if digest not in self._facts]
        self._facts |= self._timeline.facts_by_digest(known)
        edited = edited_identities(self._facts[digest] for digest in ever)
        rows, asked, dropped = self._timeline.editor().phrasings, list[_Asked](), set[str]()
        for number, digests in chosen.items():
            for digest in digests:
                fact = self._facts[digest]
                asked.append((fact, number, "efficacy", leading(loaded, fact), fact.answer))
                asked += [(fact, number, "chat", question, fact.answer) for question in questions_of(loaded, fact)[1:]]
                other = [leading(loaded, text) for text in unseen_of(fact, rows)[:1]]
                asked += [(fact, number, "generality", question, fact.answer) for question in other]
                for measure, probe in _following(fact).items():
                    question, target = leading(loaded, probe), str(probe.target)
                    asked.append((fact, number, measure, question, target))
                    self._aliases[question, target] = tuple(a for a in probe.aliases if fits(loaded, question, a))
                free = [probe for probe in fact.locality if edited.isdisjoint(probe_identities(probe, fact))]
                dropped.update(probe.prompt for probe in fact.locality if probe not in free)
                if free:
                    probe = _one_of(free)
                    asked.append((fact, number, "locality", leading(loaded, probe), probe.target or ""))
        return asked, len(dropped)

    def _ask(self, loaded: LoadedModel, asked: Sequence[_Asked]) -> list[Outcome]:
        asked = [question for question in asked if fits(loaded, question[3], question[4] or None)]
        own = [question for question in asked if question[2] != "locality"]
        others = [question for question in asked if question[2] == "locality"]
        results = ask_any(loaded, [(prompt, target) for *_, prompt, target in own], self._aliases)
        probes = [(prompt, target or None) for *_, prompt, target in others]
        if unknown := [probe for probe in dict.fromkeys(probes) if probe not in self._base]:
            self._base.update(zip(unknown, base_answers(loaded, unknown), strict=True))
        results += ask_unchanged(loaded, [prompt for prompt, _ in probes], [self._base[probe] for probe in probes])
        return [_outcome(*question, result) for question, result in zip([*own, *others], results, strict=True)]

    def _ask_guards(self, loaded: LoadedModel, ever: Sequence[str], seed: int) -> list[Outcome]:
        preserved = self._timeline.bench().preserved
        guards = preserved.guards(subjects_of([self._facts[digest] for digest in ever]))
        if self._size is not None:
            guards.sort(key=lambda i: digest_bytes(f"guard/{seed}/{preserved.probes[i].prompt}".encode()))
            guards = guards[: self._size // 4]
        asked: list[_Asked] = [(None, 0, "guard", preserved.question(i), "") for i in guards]
        results = ask_unchanged(loaded, [prompt for *_, prompt, _ in asked], [preserved.answers[i].ids for i in guards])
        return [_outcome(*question, result) for question, result in zip(asked, results, strict=True)]


def _following(fact: Fact) -> dict[Measure, Probe]:
    """Of what follows from a fact one question of each kind that is measured."""
    known = [probe for probe in fact.portability if probe.target]
    kinds: dict[Measure, list[Probe]] = {
        "portability": [probe for probe in known if probe.kind != MULTI_HOP],
        "multihop": [probe for probe in known if probe.kind == MULTI_HOP],
    }
    return {measure: _one_of(probes) for measure, probes in kinds.items() if probes}


def _one_of(probes: Sequence[Probe]) -> Probe:
    """One of several, whatever their order."""
    return min(probes, key=lambda probe: digest_bytes(probe.prompt.encode()))


def _outcome(fact: Fact | None, taught: int, measure: Measure, asked: Question, target: str, result: Result) -> Outcome:
    digest = "" if fact is None else fact.digest
    return Outcome(
        digest, taught, measure, text_of(asked), result.generated, result.teacher_forced, result.answer.strip()
    )
