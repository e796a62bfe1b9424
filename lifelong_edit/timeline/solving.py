"""The head's state while batches are edited into it: proposals, conflicts, the gate. Imports torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from lifelong_edit.bench import Bench, Say, State, silent
from lifelong_edit.editors.contract import Change, Editor, Entries, Lesson, Resumes
from lifelong_edit.editors.registry import rule_of
from lifelong_edit.facts import Fact
from lifelong_edit.judging.forgetting import forecast_by_keys, live_conflict_keys, proposed_changes
from lifelong_edit.judging.guard import Figures, as_report, measure, objections
from lifelong_edit.judging.retracted import compared
from lifelong_edit.judging.staleness import staleness
from lifelong_edit.models import Overlay
from lifelong_edit.numerics.forecast import key_features, outlook
from lifelong_edit.policies import (
    Candidates,
    Decision,
    LiveIdentities,
    find_conflicts,
    identities,
    plan_index,
)
from lifelong_edit.stores import (
    KEYS,
    AsBase,
    Decide,
    Edit,
    EditLog,
    FactKeys,
    Forecast,
    Guard,
    KeyIndex,
    Met,
    Reconsolidate,
    Refused,
    Retract,
    Staleness,
    StepRecord,
    Weights,
)
from lifelong_edit.stores import Gate as GateFigures
from lifelong_edit.timeline.commit import UNMADE, Draft
from lifelong_edit.timeline.config import Config
from lifelong_edit.timeline.defaults import default_forecasters, default_scorer
from lifelong_edit.timeline.following import HeadState, Source
from lifelong_edit.timeline.history import History
from lifelong_edit.timeline.model import as_tensors
from lifelong_edit.timeline.sieve import Sieved
from lifelong_edit.timeline.states import environment, key_ages_at
from lifelong_edit.timeline.unfinished import Unfinished
from lifelong_edit.tracked import Follower, Without, in_order

NEIGHBOURS = 8
"""How many live facts are looked at per new one, whatever they are about."""
NEAREST = 0.9
"""From which cosine on the key index is asked: of 10,000 keys it answers in a tenth of the time so, and what is about
one subject, or names the other's, is found by that, however far its keys lie."""
BESIDE = 64
"""How many live facts about its subject are looked at, the nearest by their keys."""
CHUNK = 256
"""Facts whose conflict keys are computed at a time, where a rule keeps no keys of its own."""
AT_RISK = 5
"""How many live facts a forecast from a proposal names."""

Gate = Callable[[Bench, State, Change, Sequence[Fact]], Mapping[str, Any]]


class Solving:
    """The state at the head as the solve needs it, kept from one batch to the next."""

    def __init__(
        self,
        log: EditLog,
        history: Callable[[], History],
        config: Config,
        bench: Bench,
        editor: Editor,
        source: Source | None = None,
    ) -> None:
        """source: where blobs and facts of the history are, if not in the log."""
        self._log, self._history, self._config = log, history, config
        self._bench, self._editor, self._rule = bench, editor, rule_of(config.settings.editor)
        self._head = HeadState(log, source or log, history, config)
        self._index: KeyIndex | None = None
        self._indexed = Follower()
        self._unfinished: Unfinished | None = None

    # -- the state

    def state(self) -> State:
        """The state at the head."""
        return self._head.state()

    def moved(self, record: StepRecord) -> None:
        """A step was appended: go on by it, if it is quickly done; what was solved anew waits until it is needed."""
        if self._unfinished is not None:
            self._unfinished.clear()
            self._unfinished = None
        if record.kind in ("edit", "decide") and self._head.at_hand:
            self.state()

    @property
    def _at(self) -> int:
        return self._head.stored.record.step

    @property
    def _weights(self) -> Weights:
        return self._head.stored.weights

    # -- a batch

    def propose(self, sieved: Sieved, gate: Gate | None) -> Draft | None:
        """The step that a batch asks for, past the gate; None where conflicts leave nothing of it to do or to note.

        Takes what conflicts drop out of `sieved`. Raises StepRefusedError.
        """
        state = self.state()
        decision, keys = self._conflicts(state, sieved)
        aside = [fact for fact in sieved.facts if fact.digest in decision.drop]
        sieved.drop(decision.quarantine, "quarantined")
        sieved.drop(decision.repeats, "live")
        sieved.drop(decision.drop, "conflict")
        told: dict[str, Any] = UNMADE | {
            "parent": self._at,
            "skipped": tuple(skip.fact for skip in sieved.skips),
            "places": tuple(sieved.places),
            "conflicts": tuple(Met.of(msgspec.to_builtins(conflict)) for conflict in decision.conflicts),
            "reviewed": tuple(sieved.reviewed),
            "left_out": sieved.counts(),
        }
        noted: dict[str, Any] = {"aside": aside, "device": str(self._bench.loaded.device)}
        if not sieved.facts:
            worth = bool(decision.turned_away or sieved.reviewed)
            return Draft(record=Decide(**told), weights=self._weights, **noted) if worth else None
        replaced = self._replaced(state, decision)
        change = self._kept(self._editor.learn(state, Lesson(sieved.facts, decision.retire, keys, replaced)).held())
        if KEYS not in change.parts:
            of_each = {fact.digest: FactKeys({}, keys[fact.digest]) for fact in sieved.facts}
            change = _with_keys(change, Entries(lambda: iter([of_each])))
        weights = change.weights(self._weights)
        live: dict[str, Fact] = {}
        if self._rule.of_each:  # else nobody looks, and a copy takes its time
            retired = set(decision.retire)
            live = {digest: fact for digest, fact in state.live.items() if digest not in retired}
            live |= {fact.digest: fact for fact in sieved.facts}
        with self._bench.loaded.at(self._after(state, change, weights, live)):
            figures = _default_gate(gate)(self._bench, state, change, sieved.facts)
        record = Edit(
            **told,
            superseded=decision.retire,
            in_words_of={new: tuple(fact.digest for fact in facts) for new, facts in replaced.items()},
            gate=GateFigures.of(figures),
            forecast=Forecast.of(self._outlook(state, sieved.facts, decision, keys)),
            notes={"editor": change.report},
        )
        return Draft(
            record=record,
            weights=weights,
            facts=tuple(sieved.facts),
            change=change,
            **noted,
        )

    def _replaced(self, state: State, decision: Decision) -> dict[str, list[Fact]]:
        """For each fact of a batch those whose place it takes: live ones, and what these had replaced before.

        Earlier ones whose prompt, or subject and relation, another live fact has by now are left out.
        """
        took: dict[str, dict[str, None]] = {}
        for conflict in decision.conflicts:
            if conflict.action == "supersede":
                # What another fact of the batch would have replaced goes on to the one that replaces that.
                old = {conflict.old: None} if conflict.old in state.live else took.get(conflict.old, {})
                took.setdefault(conflict.new, {}).update(old)
        history, named, retired = self._history(), self._head.identities, set(decision.retire)
        found: dict[str, list[Fact]] = {}
        for new, olds in took.items():
            earlier = [d for d in history.predecessors(self._at, olds) if d not in olds]
            free = [
                fact for fact in self._head.facts(earlier).values() if named is None or set(named.same(fact)) <= retired
            ]
            found[new] = [*(state.live[old] for old in olds), *free]
        return found

    # -- what a batch will make forgotten

    def forecast(self, sieved: Sieved) -> dict[str, Any]:
        """What editing a batch will do to the live facts that it leaves in force, by keys alone: see `outlook`.

        A function of the head's state and the batch; the same figures as the step would log, were it made.
        """
        return self._outlook(self.state(), sieved.facts, *self._conflicts(self.state(), sieved))

    def forecast_of(self, draft: Draft) -> Forecast:
        """The same from the change that a step proposes, with the facts most at risk; before it is committed.

        Of no fact where the change gives the weights whole, or the rule keeps no keys by which it could be told.
        """
        state = self.state()
        live = _left(state, draft.record.superseded)
        shift = None if draft.change is None else draft.change.shift
        if draft.change is None or shift is None or not live or not all(state.keys[digest].rows for digest in live):
            return Forecast.of(outlook("change", (), np.zeros(0), AT_RISK))
        raw = {digest: keys.conflict for digest, keys in draft.change.keys().items()}
        batch = self._bench.centred_keys(raw, draft.facts).cpu().numpy()
        keys = key_features(live_conflict_keys(self._bench, state, live), batch)
        features = np.hstack([keys, proposed_changes(self._bench, state, live, shift)])
        probabilities = default_forecasters()["change"].probabilities(features)
        return Forecast.of(outlook("change", live, probabilities, AT_RISK))

    def _outlook(
        self, state: State, facts: Sequence[Fact], decision: Decision, keys: Mapping[str, Any]
    ) -> dict[str, Any]:
        """keys: the conflict key of each fact of the batch, (d_in,); those that conflicts drop do nothing."""
        live = _left(state, decision.retire)
        batch = [fact for fact in facts if fact.digest not in decision.drop]
        centred = self._bench.centred_keys(keys, batch).cpu().numpy() if batch else np.zeros(0)
        drawn = (state.digest, *(fact.digest for fact in batch))
        return forecast_by_keys(self._bench, state, live, centred, default_forecasters()["keys"], *drawn)

    # -- all facts together

    def staleness(self) -> dict[str, Any]:
        """How far the stored keys have drifted at the state at the head."""
        state = self.state()
        ages = key_ages_at(self._log, self._history(), self._at)
        with self._bench.loaded.at(self._editor.overlay(state)):
            facts = list(state.live.values())
            found = staleness(self._bench, self._editor.kept_rows, facts, state.keys, ages, state.digest)
        return {"state": self._at, **found}

    def reconsolidation(self, start: float, guarded: bool, say: Say | None) -> Draft:
        """The step that solves again over all live facts, begun at `start` times ΔW.

        Its kind is `refused` where the guard objects; it has the figures either way.
        """
        state, record = self.state(), self._history().record(self._at)
        facts = list(state.live.values())
        warm = {name: start * shift for name, shift in state.shifts.items()} if start else None
        told: dict[str, Any] = UNMADE | {"parent": self._at, "start": start}
        told["staleness"] = Staleness.of(self.staleness())  # as of before
        before = self._measured(self._editor.overlay(state), facts, record)
        change = self._relearned(facts, say, warm, state.digest if start else "", start)
        weights = change.weights(self._weights)
        after = self._measured(self._after(state, change, weights, state.live), facts, record)
        against = tuple(objections(before, after))
        told |= {"guard": Guard.of(as_report(before, after)), "objections": against, "notes": {"editor": change.report}}
        device = str(self._bench.loaded.device)
        if against and guarded:
            return Draft(record=Refused(**told), weights=self._weights, target=record, device=device)
        return Draft(record=Reconsolidate(**told), weights=weights, change=change, device=device)

    def _measured(self, overlay: Overlay, facts: Sequence[Fact], record: StepRecord) -> Figures:
        with self._bench.loaded.at(overlay):
            return measure(self._bench, self._editor.phrasings, facts, record.live_digest)

    def retraction(self, gone: Sequence[str], back: Sequence[Fact], say: Say | None) -> Draft:
        """The step that solves again without the facts `gone` and with the facts `back`, from the base weights.

        Those of `gone` that are not live were superseded: nothing is left of them but what the log says.

        Without a fact left it is the base.
        """
        state, bench = self.state(), self._bench
        record = self._history().record(self._at)
        known = state.live | self._head.facts([digest for digest in gone if digest not in state.live])
        retracted = [known[digest] for digest in gone]
        away = set(gone)
        left = [fact for digest, fact in state.live.items() if digest not in away] + list(back)
        told: dict[str, Any] = UNMADE | {"parent": self._at, "superseded": tuple(gone), "start": 0.0}
        none = {m.name: np.zeros((m.d_in, m.d_out), np.float32) for m in bench.loaded.modules}
        change = self._relearned(left, say) if left else self._rule.emptied(none)
        weights = change.weights(none)
        # What comes back in the place of another is right to be answered as it was, and so is what took its place.
        names = {name for fact in left for name in identities(fact)}
        gone_for_good = [fact for fact in retracted if names.isdisjoint(identities(fact))]
        standing = self._after(state, change, weights, {fact.digest: fact for fact in left})
        with bench.loaded.at(standing):
            asked = compared(bench, gone_for_good, left)
        told["as_base"] = {name: AsBase(asked=found.asked, same=found.same) for name, found in asked.items()}
        # What comes back was not in force before, and would be counted there as forgotten.
        stayed = left[: len(left) - len(back)]
        if left:
            before = self._measured(self._editor.overlay(state), stayed, record)
            after = self._measured(standing, stayed or left, record)
            told |= {"guard": Guard.of(as_report(before, after)), "notes": {"editor": change.report}}
        return Draft(
            record=Retract(**told), weights=weights, facts=tuple(back), change=change, device=str(bench.loaded.device)
        )

    def _relearned(
        self,
        facts: Sequence[Fact],
        say: Say | None,
        warm: Mapping[str, Any] | None = None,
        identity: str = "",
        start: float = 0.0,
    ) -> Change:
        """What the rule makes of all facts; where it keeps no keys of its own, with those that conflicts need."""
        if isinstance(self._editor, Resumes):
            # what it is a function of, beside what the store has fixed; with other libraries it begins anew
            told = [*sorted(fact.digest for fact in facts), identity, repr(start), repr(sorted(environment().items()))]
            self._unfinished = Unfinished(
                self._log.path, self._log.envelopes, "\n".join(told), self._bench.loaded.world
            )
            self._editor.bookmark = self._unfinished
        change = self._kept(self._editor.relearn(facts, start=warm, identity=identity, say=say or silent).held())
        if KEYS in change.parts:
            return change

        def made() -> Iterator[dict[str, FactKeys]]:
            for start in range(0, len(facts), CHUNK):
                conflict = self._bench.conflict_of(facts[start : start + CHUNK])
                yield {digest: FactKeys({}, key) for digest, key in conflict.items()}

        return _with_keys(change, Entries(made, whole=True))

    def _kept(self, change: Change) -> Change:
        """A proposal as the store keeps it."""
        return change.in_16_bits() if self._config.settings.shift_dtype == "float16" else change

    def _after(self, state: State, change: Change, weights: Weights, live: Mapping[str, Fact]) -> Overlay:
        """How the state that a change leads to will show in the model, before it is committed."""
        further = change.further(state.parts, live)
        return self._editor.overlay(State(shifts=as_tensors(weights), live=dict(live), parts=further))

    def _conflicts(self, state: State, sieved: Sieved) -> tuple[Decision, dict[str, Any]]:
        """What is decided of a batch, and the conflict key of each of its facts as it is stored, (d_in,).

        By the policy of its handling; without one by the setting, and `supersede` for what comes back from review.
        """
        settings, bench, facts = self._config.settings, self._bench, sieved.facts
        if not facts:
            return find_conflicts((), state.live), {}
        known = self._head.named()
        keys = bench.conflict_of(facts)
        decision = find_conflicts(
            facts,
            state.live,
            scorer=bench.scorer or default_scorer(),
            candidates=self._candidates(state, facts, bench.centred_keys(keys, facts).cpu().numpy(), known),
            cosine=settings.conflict_cosine,
            threshold=settings.conflict_probability,
            policy=sieved.handling.policy(settings.conflict_policy),
            trusted=settings.trusted_sources,
            known=known,
        )
        return decision, keys

    def _candidates(
        self, state: State, facts: Sequence[Fact], keys: npt.NDArray[np.float32], known: LiveIdentities
    ) -> list[Candidates]:
        """For each fact of a batch the nearest live ones, those about its subject, and earlier ones of the batch.

        keys: (n, d_in), centred and of length 1.
        """
        floor = max(NEAREST, self._config.settings.conflict_cosine)
        near, about = self.index().search(keys, NEIGHBOURS, floor), [known.about(fact) for fact in facts]
        met = list(dict.fromkeys(digest for digests in about for digest in digests))
        theirs = dict(zip(met, live_conflict_keys(self._bench, state, met), strict=True))
        found: list[Candidates] = []
        for i, key in enumerate(keys):
            beside = sorted(((digest, float(theirs[digest] @ key)) for digest in about[i]), key=lambda pair: -pair[1])
            cosines = dict(beside[:BESIDE]) | dict(near[i])
            cosines |= {facts[j].digest: float(keys[j] @ key) for j in range(i)}
            found.append(list(cosines.items()))
        return found

    # -- the key index

    def index(self) -> KeyIndex:
        """The keys of the live facts. A fact's key is the same at every state, so the index follows by difference."""
        state = self.state()
        if self._index is None:
            width = len(self._bench.conflict_mean)
            chain = self._log.head().chain
            self._index = KeyIndex.open(
                self._folder, width, chain, self._centred, list(state.keys), self._log.envelopes
            )
        index = self._index
        gone, come = index.differing(state.keys, self._indexed.changed(state.keys))
        index.remove(gone)
        if come:
            index.add(come, self._centred(come))
        if (kind := plan_index(len(index), index.kind, index.fitted)) is not None:
            index.rebuild(kind)
        return index

    def save_index(self) -> None:
        """Keep the index beside the log, if there is one and the store may be written to."""
        history = self._history()
        at_head = self._head.at_hand and self._at == history.state_of(history.head)
        if self._index is not None and at_head and not self._log.read_only:
            self.index().save(self._folder, self._log.head().chain, self._log.envelopes)

    @property
    def _folder(self) -> Any:
        return self._log.path / "index"

    def _centred(self, facts: Sequence[str]) -> Any:
        mean = self._bench.conflict_mean.cpu().numpy()
        keys = self.state().keys
        return np.stack([keys[fact].conflict for fact in facts]).astype(np.float32) - mean


def _with_keys(change: Change, keys: Entries) -> Change:
    return replace(change, parts={**change.parts, KEYS: keys})


def _left(state: State, retired: Sequence[str]) -> Sequence[str]:
    """Digests of the live facts that a batch leaves in force, sorted: no figure depends on how they came."""
    return in_order(Without(state.live, frozenset(retired)))


def _default_gate(gate: Gate | None) -> Gate:
    from lifelong_edit.judging.gate import check

    return check if gate is None else gate
