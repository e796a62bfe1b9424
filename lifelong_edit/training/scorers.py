"""Pairs of facts about one subject of which it is known whether they ask for the same, and a scorer fitted on them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from lifelong_edit.atomic import write_bytes_atomic
from lifelong_edit.facts import Fact, mentions, put_in
from lifelong_edit.models import LoadedModel
from lifelong_edit.numerics.logistic import Array, fit_logistic
from lifelong_edit.policies import normalise
from lifelong_edit.policies.scoring import CONFLICTS, FEATURES, Scorer, features_of
from lifelong_edit.settings import StoreSettings
from lifelong_edit.tasks import task_of
from lifelong_edit.tracing.conflict_keys import centred, lowest_keys
from lifelong_edit.tracing.rows import draw

MOST = 1000
"""Facts that a scorer is fitted on: a few numbers need no more."""
LEAST = 50
"""Pairs of each kind without which none is fitted."""
ALARMS = 0.001
"""The share of unrelated facts that may be taken for one in force."""
SHARE = 0.01
"""The share of unrelated facts that are about a subject in force, where a file of facts has fewer."""
ASKED = 2
"""In how many phrasings, that are none of the fact's own rows, a fact is asked again."""


@dataclass(frozen=True)
class Pair:
    """A fact as it comes and one in force, neither with a relation: with one on both sides there is nothing to tell."""

    new: Fact
    old: Fact
    same: bool
    """Whether they ask for the same thing."""
    written: bool = False
    """Whether no fact asks `new`: it is a prompt of another relation with this subject put in."""

    @property
    def group(self) -> str:
        """The relation of the fact in force, by its first record."""
        return self.old.source or ""


def as_known(fact: Fact) -> Fact:
    """A fact as one in force would be met: the first half of its rephrases with it, no relation to tell it by.

    Its relation stands as its `source`, where nothing that is measured looks.
    """
    half = fact.rephrases[: len(fact.rephrases) // 2]
    return msgspec.structs.replace(fact, rephrases=half, relation=None, source=fact.relation)


def asked_again(fact: Fact, seed: int) -> list[Fact]:
    """The fact in other phrasings, those of the second half of its rephrases: `ASKED` at most, drawn by seed."""
    known = as_known(fact)
    said = {normalise(text) for text in (known.prompt, *known.rephrases)}
    rest = [text for text in fact.rephrases[len(known.rephrases) :] if normalise(text) not in said]
    chosen = draw(len(rest), ASKED, "asked again", seed, fact.digest)
    return [msgspec.structs.replace(known, prompt=rest[i], rephrases=()) for i in chosen]


def draw_pairs(facts: Sequence[Fact], seed: int) -> list[Pair]:
    """Pairs about one subject: each fact with its own other phrasings, and with questions that are not its own.

    Those are what other facts with another relation ask about the subject; for a fact without any such, a prompt of
    another relation with its subject put in. Facts without a relation make no pairs, nor do those without rephrases.
    """
    known = [fact for fact in facts if fact.relation and fact.rephrases]
    about: dict[str, list[Fact]] = defaultdict(list)
    for fact in known:
        about[normalise(fact.about)].append(fact)
    pairs: list[Pair] = []
    for i in draw(len(known), MOST, "pairs", seed):
        fact = known[i]
        old = as_known(fact)
        pairs += [Pair(new, old, True) for new in asked_again(fact, seed)]
        others = [f for f in about[normalise(fact.about)] if _other_relation(f, fact)]
        asked = [new for other in others for new in (as_known(other), *asked_again(other, seed))]
        pairs += [Pair(new, old, False) for new in asked if not _says(fact, new.prompt)]
        if not others:
            pairs += _written(fact, known, seed)
    return pairs


def _written(fact: Fact, known: Sequence[Fact], seed: int) -> list[Pair]:
    """One question of another relation with the subject of `fact`, where one is found among some draws."""
    if fact.subject is None:
        return []
    for i in draw(len(known), 8, "written", seed, fact.digest):
        other = known[i]
        if _other_relation(other, fact) and mentions(other.prompt, other.subject):
            prompt = put_in(other.prompt, other.subject, fact.subject)
            if not _says(fact, prompt):
                new = msgspec.structs.replace(as_known(other), subject=fact.subject, prompt=prompt, rephrases=())
                return [Pair(new, as_known(fact), False, written=True)]
    return []


def _other_relation(one: Fact, other: Fact) -> bool:
    return normalise(one.relation or "") != normalise(other.relation or "")


def _says(fact: Fact, prompt: str) -> bool:
    """Whether a fact has this phrasing: then the two are one question, whatever their relations are called."""
    return normalise(prompt) in {normalise(text) for text in (fact.prompt, *fact.rephrases)}


def measure_pairs(loaded: LoadedModel, mean: torch.Tensor, pairs: Sequence[Pair], micro_batch: int) -> Array:
    """Features of the pairs, (n, features), see `FEATURES`. mean: the conflict centre, (d_in,)."""
    if not pairs:
        return np.zeros((0, len(FEATURES)))
    task = task_of(loaded)
    prompts = list(dict.fromkeys(fact.prompt for pair in pairs for fact in (pair.new, pair.old)))
    place = {prompt: i for i, prompt in enumerate(prompts)}
    ids = [task.encode_question(loaded, prompt) for prompt in prompts]
    keys = centred(lowest_keys(loaded, ids, micro_batch), mean).cpu().double().numpy()
    cosines = [float(keys[place[pair.new.prompt]] @ keys[place[pair.old.prompt]]) for pair in pairs]
    rows = [features_of(pair.new, pair.old, cosine) for pair, cosine in zip(pairs, cosines, strict=True)]
    return np.array(rows)


def fit_scorer(pairs: Sequence[Pair], features: Array, asked: int, provenance: Mapping[str, Any]) -> Scorer | None:
    """A scorer from measured pairs; None where they are too few, or of one relation, to tell anything by.

    Written pairs count only where there are too few others. asked: how many questions the pairs were sought among,
    those included that met no other fact.
    """
    same, written = (np.array([getattr(pair, name) for pair in pairs], bool) for name in ("same", "written"))
    met = len({(pair.new.about, pair.new.prompt) for pair in pairs if not pair.same and not pair.written})
    kept = ~written if (~same & ~written).sum() >= LEAST else np.ones(len(pairs), bool)
    pairs, features, same = [p for p, keep in zip(pairs, kept, strict=True) if keep], features[kept], same[kept]
    groups = np.array([pair.group for pair in pairs])
    if min(same.sum(), (~same).sum()) < LEAST or len(np.unique(groups)) < 2:
        return None
    found, held_out = fit_logistic(FEATURES, features, same, groups, even=True)
    alarms: dict[tuple[str, str], float] = {}
    for pair, probability in zip(pairs, held_out, strict=True):
        if not pair.same:
            name = (pair.new.about, pair.new.prompt)
            alarms[name] = max(alarms.get(name, 0.0), float(probability))
    threshold = threshold_of(list(alarms.values()), met / asked)
    told = dict(provenance) | {"same": int(same.sum()), "other": int((~same).sum())}
    told |= {"questions": asked, "of a subject with other facts": met}
    return Scorer(**msgspec.structs.asdict(found) | {"provenance": told, "threshold": threshold})


def threshold_of(scores: Sequence[float], share: float) -> float:
    """The least probability from which no more than `ALARMS` of all unrelated facts are taken for one in force.

    scores: of facts that ask something else about a subject in force, each one's largest probability. share: of all
    unrelated facts that are such; others are no alarms. It is taken to be no less than `SHARE`: a file in which no
    subject comes twice does not say that none ever will.
    """
    allowed = int(ALARMS / max(share, SHARE) * len(scores))
    return math.nextafter(sorted(scores, reverse=True)[allowed], 1.0) if allowed < len(scores) else 0.0


def scorer_for(
    loaded: LoadedModel, mean: npt.NDArray[Any], facts: Sequence[Fact], micro_batch: int, seed: int
) -> Scorer | None:
    """A scorer for a model from facts with relations and rephrases; None where too few have them.

    mean: the conflict centre, (d_in,). The model's weights stay.
    """
    pairs = draw_pairs(facts, seed)
    centre = torch.from_numpy(np.array(mean)).to(loaded.device)
    features = measure_pairs(loaded, centre, pairs, micro_batch)
    made = {"fingerprint": loaded.fingerprint, "module": loaded.conflict_module.name, "seed": seed}
    asked = sum(1 + len(asked_again(fact, seed)) for fact in facts if fact.relation and fact.rephrases)
    return fit_scorer(pairs, features, asked, made)


def leave_scorer(
    folder: Path,
    loaded: LoadedModel,
    mean: npt.NDArray[Any],
    facts: Sequence[Fact],
    settings: StoreSettings,
    say: Callable[[str], None],
) -> None:
    """Fit a scorer on facts and leave it in a folder, for a store to take; say so, or why there is none.

    Arguments as of `scorer_for`; of several processes number 0 writes. One that an earlier run left there does not
    outlive facts that give none.
    """
    found, path = scorer_for(loaded, mean, facts, settings.micro_batch, settings.seed), folder / CONFLICTS
    world = loaded.world
    if found is None:
        world.lead(lambda: path.unlink(missing_ok=True))
        say(
            f"no scorer of conflicts: found fewer than {LEAST} paraphrases or questions of other relations, expected "
            "facts with rephrases and two relations at least; a store takes the default one"
        )
        return

    def write() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes_atomic(path, msgspec.json.format(msgspec.json.encode(found), indent=1))

    world.lead(write)
    say(f"wrote {path}  (area under the curve {found.auc:.3f}, threshold {found.threshold:.3f})")
