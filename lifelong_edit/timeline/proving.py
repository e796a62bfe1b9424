"""The proof that facts are out of a model: a store that never had them, made anew, with the same digests.

A retraction solves again for the facts that remain, from the base weights (`timeline.solving`); every rule that can do
so gives by it a function of those facts and of what `init` fixed, to the last bit (`editors.contract.Editor.relearn`).
So anybody who has the store's beginning and the facts that remain can make the same state, and compare.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from lifelong_edit.editors.contract import Rule
from lifelong_edit.editors.registry import core_of, rule_of
from lifelong_edit.errors import UsageError
from lifelong_edit.stores import KEYS, WEIGHTS, StepRecord, Weights, digest_bytes
from lifelong_edit.timeline.history import History, named
from lifelong_edit.timeline.states import differences, environment
from lifelong_edit.timeline.timeline import Timeline

FORMAT = 1
Verdict = Literal["equal", "near", "different"]
"""To the last bit; within rounding, in another environment than the retraction's; or not the same."""
NEAR = 1e-4
"""Of ‖ΔW‖: how far weights that were solved for in another environment may be from those of the retraction."""


@dataclass(frozen=True)
class Compared:
    """One part of a state: its digest after the retraction, and in the store that was made without the facts."""

    part: str
    retracted: str
    rebuilt: str

    @property
    def equal(self) -> bool:
        """Whether it is the same to the last bit."""
        return self.retracted == self.rebuilt


@dataclass(frozen=True)
class Proof:
    """What was found. facts: digests of the retracted ones; step: the retraction whose state was made anew.

    digests: of the facts in force, of ΔW, and of each further part that the rule keeps. distance: ‖ΔW − ΔW'‖ / ‖ΔW‖
    where they are not equal. changed: what of the environment is another than the retraction's. head_free: whether the
    state at the head, too, holds nothing of the facts. holding: the steps within reach whose states do. told: what is
    known of store, model and retraction, as JSON values.
    """

    facts: tuple[str, ...]
    step: int
    digests: tuple[Compared, ...]
    distance: float
    changed: tuple[str, ...]
    head_free: bool
    holding: tuple[int, ...]
    told: Mapping[str, Any]

    @property
    def verdict(self) -> Verdict:
        """What the comparison says."""
        if all(one.equal for one in self.digests):
            return "equal"
        # Keys are traced, and round as weights do; of other parts nothing says how far they are.
        others = [one for one in self.digests if not one.equal and one.part not in (WEIGHTS, KEYS)]
        return "near" if self.changed and self.distance <= NEAR and not others else "different"


def prove(
    timeline: Timeline,
    facts: Sequence[str],
    *,
    keep: Path | None = None,
    say: Callable[[str], None] | None = None,
) -> Proof:
    """Make the store anew without facts that were retracted, and compare it with the state after the retraction.

    facts: digests of retracted facts, or beginnings of them; the last of their retractions is looked at. The new store
    begins with the same step 0, is taught all facts that were in force after the retraction in one canonical solve, and
    never sees the others. It is as encrypted as the store. keep: leave it there, for others to look at; otherwise it
    goes. say: told about each pass. Raises UsageError for a name of no retracted fact and where `keep` is taken,
    StoreDamagedError where the stored state is not what the log says, and whatever solving raises. The store itself is
    only read.
    """
    history = timeline.history()
    retracted = history.fold(timeline.head).retracted
    gone = tuple(
        dict.fromkeys(named(name, retracted, "fact", "that was retracted", "facts --state retracted") for name in facts)
    )
    if not gone:
        raise UsageError("no fact was named; expected the digest of a retracted one, see `facts --state retracted`")
    record = history.record(max(retracted[digest] for digest in gone))
    held = history.holding(gone)
    with tempfile.TemporaryDirectory(prefix="lifelong-proof-") as folder:
        with timeline.begin_again(keep or Path(folder) / "store") as anew:
            made = anew.settle(timeline.live_facts(record.step), reason=f"made without {', '.join(gone)}", say=say)
            weights = anew.weights(made.step)
        digests = _compared(record, made)
        # What the store holds for that state has the digest that the log says, or reading it raises.
        held_there = timeline.weights(record.step) if history.dropped_by(record.step) is None else None
        distance = 0.0 if digests[1].equal or held_there is None else _distance(held_there, weights)
    return Proof(
        facts=gone,
        step=record.step,
        digests=digests,
        distance=distance,
        changed=tuple(differences(record.provenance.get("environment", {}), environment())),
        head_free=history.state_of(timeline.head) not in held,
        holding=tuple(step for step in sorted(held) if history.dropped_by(step) is None),
        told=_told(timeline, history, record, gone),
    )


def _compared(record: StepRecord, made: StepRecord) -> tuple[Compared, ...]:
    """The facts in force, ΔW, and every further part with a digest."""
    found = [
        Compared("facts in force", record.live_digest, made.live_digest),
        Compared(WEIGHTS, record.weights_digest, made.weights_digest),
    ]
    for name in sorted((record.parts.keys() | made.parts.keys()) - {WEIGHTS}):
        digests = [one.parts[name].digest if name in one.parts else "" for one in (record, made)]
        found.append(Compared(name, *digests))
    return tuple(found)


def _distance(one: Weights, other: Weights) -> float:
    off = sum(float(np.square(one[name] - other[name], dtype=np.float64).sum()) for name in one)
    whole = sum(float(np.square(one[name], dtype=np.float64).sum()) for name in one)
    return float(np.sqrt(off / whole)) if whole else float("inf")


def _told(timeline: Timeline, history: History, record: StepRecord, gone: Sequence[str]) -> dict[str, Any]:
    model, first = timeline.config.model, history.record(0)
    rule = rule_of(timeline.settings.editor)
    return {
        "retraction": {
            "step": record.step,
            "time": record.time,
            "author": record.author,
            "reason": record.reason,
            "facts": len(record.superseded),
            "in_force_after": len(history.live(record.step)),
            "purged": {digest: history.purged[digest] for digest in gone if digest in history.purged},
        },
        "store": {
            "steps": history.head,
            "chain": timeline.chain,
            "rule": rule.name,
            "settings": timeline.config.settings_digest,
            "fixed": first.fixed,
            "environment": record.provenance.get("environment", {}),
        },
        "model": {
            "name": model.source.rstrip("/").rpartition("/")[2],
            "revision": model.revision,
            "dtype": model.dtype,
            "fingerprint": model.fingerprint,
        },
    }


# -- the page


def page_of(proof: Proof, rule: Rule, when: str) -> dict[str, Any]:
    """All that an auditor needs, as JSON values, with a digest that covers it (`page_digest`). when: UTC, ISO 8601."""
    page: dict[str, Any] = {
        "format": FORMAT,
        "made": when,
        "verdict": proof.verdict,
        "facts": list(proof.facts),
        **proof.told,
        "digests": [asdict(one) | {"equal": one.equal} for one in proof.digests],
        "distance": proof.distance,
        "environment_changed": list(proof.changed),
        "head": {"free_of_the_facts": proof.head_free, "steps_that_hold_them": list(proof.holding)},
        "says": _says(proof, rule),
        "does_not_say": _silent_about(proof, rule),
        "check": _checks(proof),
    }
    return page | {"page_digest": page_digest(page)}


def page_digest(page: Mapping[str, Any]) -> str:
    """Digest (32 hex digits, BLAKE2b) of a page without its `page_digest`: JSON, keys sorted, no blanks, UTF-8."""
    rest = {name: value for name, value in page.items() if name != "page_digest"}
    return digest_bytes(msgspec.json.encode(rest, order="sorted"))


def _says(proof: Proof, rule: Rule) -> list[str]:
    few = "the fact" if len(proof.facts) == 1 else "the facts"
    kept = ", ".join(one.part for one in proof.digests)
    found = {
        "equal": f"A store that never had {few} was made from the same beginning and the facts in force after step "
        f"{proof.step}. All that its state consists of ({kept}) has the same digests: to the last bit, the state after "
        f"the retraction is one in which {few} never {'was' if len(proof.facts) == 1 else 'were'}.",
        "near": f"A store that never had {few} was made, in another environment than the retraction was. Its weights "
        f"differ from those after step {proof.step} by {proof.distance:.1e} of the change: within rounding, and not to "
        "the last bit. Made again in the retraction's environment, it would be equal.",
        "different": f"A store that never had {few} was made, and is not the state after step {proof.step}. Nothing is "
        "proven.",
    }[proof.verdict]
    says = [found]
    if rule.by_facts:
        alone, are = rule_of(core_of(rule.name)).by_facts, "is" if len(proof.facts) == 1 else "are"
        says.append(
            f"The rule {rule.name} remembers the facts themselves. So this says that {few} {are} not among those "
            + ("remembered, and nothing of weights, which it leaves alone." if alone else "remembered either.")
        )
    if proof.head_free and proof.told["store"]["steps"] > proof.step:
        says.append(
            f"By the log, no step since has taught {few} or used their words: the state at the head is free too."
        )
    return says


def _silent_about(proof: Proof, rule: Rule) -> list[str]:
    few = "the fact" if len(proof.facts) == 1 else "the facts"
    silent = [
        f"Whether the base model knows {few} from its own training: the state is then as the base is.",
        "Backups, exports, caches, input files and copies elsewhere, which a store does not know of.",
        "Who made this page: its digest shows that it was not changed by accident. Sign the file to vouch for it.",
    ]
    if rule.network:
        silent.insert(1, f"The data of the network that the rule {rule.name} was trained with, which is not looked at.")
    if not proof.head_free:
        silent.insert(0, f"The state at the head: it holds something of {few} again, or words of theirs.")
    if proof.holding:
        steps = ", ".join(str(step) for step in proof.holding)
        silent.append(f"What can still be gone back to and holds {few}: steps {steps}; `purge` drops them.")
    if left := [digest for digest in proof.facts if digest not in proof.told["retraction"]["purged"]]:
        silent.append(f"The text of {', '.join(left)}, which stands in the store's log until `purge` drops it.")
    return silent


def _checks(proof: Proof) -> list[str]:
    step = proof.step
    return [
        f"lifelong-edit prove {' '.join(proof.facts)} --store STORE   # all of this again",
        "lifelong-edit fsck --store STORE   # every record and payload has the digest that the log says",
        f"lifelong-edit facts --at {step} --json --store STORE > remaining.json   # all that was in force",
        "lifelong-edit init --store NEW ...   # the model, settings, preserved prompts and text of STORE's own init",
        "lifelong-edit stream remaining.json --store NEW && lifelong-edit reconsolidate --no-guard --store NEW",
        f"lifelong-edit show head --store NEW --json   # weights_digest and live_digest are those of step {step}",
    ]


def as_text(page: Mapping[str, Any]) -> str:
    """A page as Markdown, for people."""
    retraction, store, model = page["retraction"], page["store"], page["model"]
    verdict = {"equal": "EQUAL, to the last bit", "near": "NEAR, within rounding", "different": "NOT EQUAL"}
    rows = [
        f"| {one['part']} | `{one['retracted']}` | `{one['rebuilt']}` | {'yes' if one['equal'] else 'NO'} |"
        for one in page["digests"]
    ]
    asked = [f"- taken back: `{digest}`" for digest in page["facts"]]
    asked += [
        f"- by step {retraction['step']}, {retraction['time']}, {retraction['author'] or 'no author'}",
        f"- reason: {retraction['reason'] or 'none given'}",
        f"- facts in force after it: {retraction['in_force_after']:,}",
        *(f"- text of `{digest}` dropped by step {step}" for digest, step in retraction["purged"].items()),
    ]
    about = [
        f"- model: {model['name']}, {model['dtype']}, fingerprint `{model['fingerprint']}`",
        f"- rule: {store['rule']}, settings `{store['settings']}`, fixed at init `{store['fixed']}`",
        f"- log: {store['steps']} steps, chain `{store['chain']}`",
        *(f"- another environment now: {one}" for one in page["environment_changed"]),
    ]
    parts = [
        f"# Proof of a retraction: {verdict[page['verdict']]}",
        f"Made {page['made']} by lifelong-edit.",
        "## What was asked",
        "\n".join(asked),
        "## What was compared",
        "\n".join(["| | after the retraction | made without | equal |", "| --- | --- | --- | --- |", *rows]),
        "\n".join(about),
        "## What this says",
        "\n".join(f"- {line}" for line in page["says"]),
        "## What it does not say",
        "\n".join(f"- {line}" for line in page["does_not_say"]),
        "## How to check it",
        "\n".join(["```text", *page["check"], "```"]),
        f"Digest of this page's JSON without `page_digest`, keys sorted (BLAKE2b, 16 bytes): `{page['page_digest']}`",
    ]
    return "\n\n".join(parts) + "\n"
