"""How well paraphrases and contradictions are told from unrelated facts, by the scorer of conflicts.

Relations are cut in two halves by seed: a scorer is fitted on training facts of one half and judged on facts of the
other, both ways round. Judged are facts that a model knows and facts that it does not, none with a relation to tell it
by. *Paraphrase*: the fact in a phrasing of its second half of rephrases (ParaRel's patterns for trex-gpt2-mini), beside
it in force with its prompt and the first half; `counterfact`: in CounterFact's own rephrase, which wraps it into a
sentence. *Unrelated*: `random`, another subject and relation; `answer`, another subject with the same relation and
true answer; `subject`, the same subject in another relation.

Then facts in a stream against 1,000 in force, through the index and `find_conflicts`: asked again with the same answer,
with another one, and facts that are not in force.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from benchmarks import common
from benchmarks.data import trex_facts, trex_model
from benchmarks.reliability import BINS, save_figure
from lifelong_edit import atlas
from lifelong_edit.eval.metrics.verdicts import predict_answers
from lifelong_edit.facts import Fact, read_facts
from lifelong_edit.models import LoadedModel, encode, encode_prompt, load_model
from lifelong_edit.policies import LiveIdentities, Scorer, find_conflicts, normalise
from lifelong_edit.policies.scoring import same_subject
from lifelong_edit.stores import KeyIndex
from lifelong_edit.timeline.defaults import default_preserved, default_scorer
from lifelong_edit.timeline.solving import NEAREST, NEIGHBOURS
from lifelong_edit.tracing.conflict_keys import centred, lowest_keys
from lifelong_edit.training.scorers import Pair, as_known, asked_again, measure_pairs, scorer_for

KINDS = ("random", "answer", "subject")
BATCH, LIVE, OTHERS = 64, 1000, 4
FIXED_COSINE = 0.8
"""What a pair had to reach before there was a scorer."""
STRANGERS = {
    "P101": ("scientist_field", "scientist_country"),
    "P159": ("company_headquarters", "company_industry"),
    "P36": ("country_capital", "country_language", "country_currency", "country_continent"),
}
"""ParaRel's relations whose subjects are asked about in relations of atlas."""
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Case:
    """A pair to be judged: what it is, and the relation of the fact in force."""

    pair: Pair
    kind: str


@dataclass(frozen=True)
class Model:
    """A model with its conflict centre, facts to fit on, and facts to be judged on: known ones and others."""

    name: str
    loaded: LoadedModel
    mean: npt.NDArray[np.float32]
    training: list[Fact]
    judged: dict[str, list[Fact]]
    neighbours: Mapping[str, Sequence[tuple[str, str]]]
    """By relation: others that its subjects have too, each with a prompt, `[X]` in the subject's place."""
    wrapped: list[Pair]
    """Pairs of facts that the model does not know, one in CounterFact's own rephrase."""


def patterns() -> dict[str, list[str]]:
    """ParaRel's patterns whose answer stands at the end, by relation, up to the answer."""
    found: dict[str, list[str]] = {}
    for path in sorted(common.shared("data/pararel/patterns").glob("*.jsonl")):
        texts = [record["pattern"].strip().removesuffix(".").strip() for record in common.read_json_lines(path)]
        kept = [text.removesuffix("[Y]").strip() for text in texts if text.endswith("[Y]") and "[X]" in text]
        found[path.stem] = list(dict.fromkeys(kept))
    return found


def tuples() -> dict[str, list[tuple[str, str]]]:
    """ParaRel's (subject, answer) by relation."""
    folder = common.shared("data/pararel/tuples")
    return {
        path.stem: [(r["sub_label"], r["obj_label"]) for r in common.read_json_lines(path)]
        for path in sorted(folder.glob("*.jsonl"))
    }


def wrong(loaded: LoadedModel, facts: Sequence[Fact]) -> list[Fact]:
    """Those of the facts whose true answer the model does not give to their prompt."""
    asked = [encode(loaded.tokenizer, fact.prompt, fact.target_true or fact.target) for fact in facts]
    found = predict_answers(loaded, asked)
    return [f for f, e, guess in zip(facts, asked, found, strict=True) if guess != e.answer]


def trex(seed: int) -> Model:
    """trex-gpt2-mini: fitted on `facts_train.jsonl`, judged on `facts_stream.jsonl` and on tuples it does not know."""
    loaded, train, stream = load_model(str(trex_model())), trex_facts("train"), trex_facts("stream")
    forms, world, rng = patterns(), tuples(), random.Random(seed)
    seen = {fact.subject for fact in (*train, *stream)}
    relations = sorted({fact.relation for fact in stream if fact.relation and len(forms[fact.relation]) > 1})
    unknown = []
    for relation in relations:
        fresh = [pair for pair in world[relation] if pair[0] not in seen]
        for subject, answer in rng.sample(fresh, min(80, len(fresh))):
            texts = [text.replace("[X]", subject) for text in rng.sample(forms[relation], len(forms[relation]))]
            unknown.append(
                Fact(subject=subject, relation=relation, prompt=texts[0], rephrases=tuple(texts[1:]), target=answer)
            )
    records = json.loads((common.shared("data/counterfact") / "counterfact-edit.json").read_text(encoding="utf-8"))
    cases = [r for r in records if r["subject"] not in seen][:2000]
    plain = [Fact(subject=r["subject"], prompt=r["prompt"], target=r["ground_truth"]) for r in cases]
    again = {r["prompt"]: r["rephrase_prompt"] for r in cases}
    wrapped = [Pair(msgspec.structs.replace(f, prompt=again[f.prompt]), f, True) for f in wrong(loaded, plain)]
    ids = [encode_prompt(loaded.tokenizer, fact.prompt) for fact in train]
    return Model(
        name="trex-gpt2-mini",
        loaded=loaded,
        mean=lowest_keys(loaded, ids, BATCH).mean(0).numpy(),
        training=train,
        judged={"known": stream, "unknown": wrong(loaded, unknown)},
        neighbours=meeting(forms, world),
        wrapped=wrapped,
    )


def meeting(
    forms: Mapping[str, Sequence[str]], world: Mapping[str, Sequence[tuple[str, str]]]
) -> dict[str, list[tuple[str, str]]]:
    """Of the eight relations that share most subjects with each one: their names, and patterns that it has not."""
    held: dict[str, set[str]] = defaultdict(set)
    for relation, pairs in world.items():
        for subject, _ in pairs:
            held[subject].add(relation)
    shared: dict[str, Counter[str]] = defaultdict(Counter)
    for names in held.values():
        for one in names:
            shared[one].update(names - {one})
    return {
        one: [
            (other, text)
            for other, _ in shared[one].most_common(8)
            for text in forms.get(other, ())
            if text not in forms[one]
        ]
        for one in forms
    }


def atlas_model(seed: int) -> Model:
    """The bundled model: fitted on its training edits, judged on validation edits, and on subjects that it never met.

    Those are ParaRel's, asked what atlas knows of others of their kind.
    """
    from lifelong_edit.atlas.phrasings import BY_NAME
    from lifelong_edit.atlas.world_tables import world_facts

    loaded = load_model("atlas")
    train, known = (
        [r.fact for r in read_facts([str(path())])] for path in (atlas.edits_train_path, atlas.edits_validation_path)
    )
    met = {normalise(fact.subject) for fact in world_facts()}
    world, rng, unknown = tuples(), random.Random(seed), list[Fact]()
    for source, relations in STRANGERS.items():
        fresh = [pair for pair in world[source] if normalise(pair[0]) not in met]
        for subject, answer in rng.sample(fresh, min(80, len(fresh))):
            for relation in relations:
                texts = [text.format(s=subject) for text in BY_NAME[relation].trained]
                unknown.append(
                    Fact(subject=subject, relation=relation, prompt=texts[0], rephrases=tuple(texts[1:]), target=answer)
                )
    ids = [encode_prompt(loaded.tokenizer, probe.prompt) for probe in default_preserved("atlas")]
    mean = lowest_keys(loaded, ids, BATCH).mean(0).numpy()
    return Model("atlas", loaded, mean, train, {"known": known, "unknown": unknown}, {}, [])


def halves(facts: Iterable[Fact], seed: int) -> frozenset[str]:
    """One half of the relations."""
    names = sorted({fact.relation for fact in facts if fact.relation})
    return frozenset(random.Random(seed).sample(names, len(names) // 2))


def cases(facts: Sequence[Fact], neighbours: Mapping[str, Sequence[str]], seed: int) -> list[Case]:
    """Pairs of every kind. neighbours: by relation, prompts of others with `[X]` in the subject's place."""
    rng, found = random.Random(seed), list[Case]()
    known = [fact for fact in facts if fact.relation and fact.rephrases]
    about, alike = defaultdict(list), defaultdict(list)
    for fact in known:
        about[normalise(fact.subject)].append(fact)
        alike[fact.relation, fact.target_true or fact.target].append(fact)
    for fact in known:
        old = as_known(fact)
        found += [Case(Pair(new, old, True), "paraphrase") for new in asked_again(fact, seed)]
        if fact.counterfact_rephrase:
            again = msgspec.structs.replace(old, prompt=fact.counterfact_rephrase, rephrases=())
            found.append(Case(Pair(again, old, True), "counterfact"))
        others = [f for f in rng.sample(known, 8) if f.relation != fact.relation and f.subject != fact.subject]
        found += [Case(Pair(as_known(f), old, False), "random") for f in others[:OTHERS]]
        twins = [f for f in alike[fact.relation, fact.target_true or fact.target] if f.subject != fact.subject]
        for twin in rng.sample(twins, min(OTHERS, len(twins))):
            new = rng.choice([as_known(twin), *asked_again(twin, seed)])
            found.append(Case(Pair(new, old, False), "answer"))
        own = [f for f in about[normalise(fact.subject)] if f.relation != fact.relation]
        asked = [new for f in own for new in (as_known(f), *asked_again(f, seed))]
        texts = neighbours.get(fact.relation or "", ())
        for text in rng.sample(texts, min(OTHERS, len(texts))):
            prompt = text.replace("[X]", fact.subject)
            asked.append(Fact(subject=fact.subject, prompt=prompt, target=fact.target))
        said = {normalise(text) for text in (fact.prompt, *fact.rephrases)}
        found += [Case(Pair(new, old, False), "subject") for new in asked if normalise(new.prompt) not in said]
    return found


def fitted(model: Model, seed: int) -> Callable[[str], Scorer]:
    """The scorer that was fitted on the half of the relations in which a relation is not."""
    half = halves(model.training, seed)
    both = [
        scorer_for(model.loaded, model.mean, [f for f in model.training if (f.relation in half) == inside], BATCH, seed)
        for inside in (True, False)
    ]

    def of(relation: str) -> Scorer:
        scorer = both[relation in half]
        assert scorer is not None, "either half has paraphrases and other questions"
        return scorer

    return of


def judge(chosen: Sequence[Case], features: Floats, scorer_of: Callable[[str], Scorer]) -> dict[str, Any]:
    """Areas under the curve, recall and false alarms, over cases with their features."""
    scorers = [scorer_of(case.pair.group) for case in chosen]
    scored = np.array([s.probabilities(f[None])[0] for s, f in zip(scorers, features, strict=True)])
    alike = np.array([same_subject(case.pair.new, case.pair.old) for case in chosen])
    decided = np.where(alike, scored, 0.0)
    alarm = decided >= np.array([s.threshold for s in scorers])
    kinds = np.array([case.kind for case in chosen])
    found: dict[str, Any] = {"cases": dict(Counter(kinds.tolist()))}
    true = kinds == "paraphrase"
    found["recall at the threshold"] = {k: share(alarm[kinds == k]) for k in ("paraphrase", "counterfact")}
    found["false alarms at the threshold"] = {k: share(alarm[kinds == k]) for k in KINDS}
    fixed = alike & (features[:, 0] >= FIXED_COSINE)
    found["a fixed cosine instead"] = {k: share(fixed[kinds == k]) for k in ("paraphrase", "counterfact", *KINDS)}
    scores = {"nearness alone": features[:, 0], "wording alone": features[:, 1]}
    scores |= {"scorer": scored, "scorer and subject": decided}
    for name, score in scores.items():
        found[name] = {k: against(score[true], score[kinds == k]) for k in KINDS}
    found["precision against subject, as many of each"] = precision(alarm[true], alarm[kinds == "subject"])
    found["reliability"] = reliability(scored, true, kinds == "subject")
    return found


def share(flags: npt.NDArray[np.bool_]) -> float | None:
    """The share that is true."""
    return float(flags.mean()) if len(flags) else None


def precision(right: npt.NDArray[np.bool_], false: npt.NDArray[np.bool_]) -> float | None:
    """Of what is found, where there are as many pairs to be found as others."""
    if not len(false) or not (right.mean() + false.mean()):
        return None
    return float(right.mean() / (right.mean() + false.mean()))


def against(true: Floats, other: Floats) -> dict[str, float] | None:
    """Area under the curve, and the recall at which one other in 1,000 (and in 100) is an alarm."""
    from sklearn.metrics import roc_auc_score

    if len(other) < 10:
        return None
    truth = np.r_[np.ones(len(true)), np.zeros(len(other))]
    found = {"auc": float(roc_auc_score(truth, np.r_[true, other]))}
    for name, rate in (("recall at 1 in 1000", 0.001), ("recall at 1 in 100", 0.01)):
        bound = np.sort(other)[::-1][int(rate * len(other))]
        found[name] = float((true > bound).mean())
    return found


def reliability(scored: Floats, true: npt.NDArray[np.bool_], other: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """By bin of the probability said: its mean, and the share of paraphrases, both kinds weighing alike."""
    if not other.any():
        return {}
    weights = true / true.sum() + other / other.sum()
    bins, gap = [], 0.0
    for low in range(BINS):
        inside = (true | other) & (np.minimum(scored * BINS, BINS - 1).astype(int) == low)
        total = weights[inside].sum()
        if total:
            said = float((weights * scored)[inside].sum() / total)
            seen = float((weights * true)[inside].sum() / total)
            gap += abs(said - seen) * float(total) / 2
            bins.append({"said": said, "seen": seen, "pairs": int(inside.sum())})
    return {"bins": bins, "expected calibration error": gap}


def in_a_stream(model: Model, facts: Sequence[Fact], scorer_of: Callable[[str], Scorer], seed: int) -> dict[str, Any]:
    """Facts against others in force, as a timeline compares them: index, subject, `find_conflicts`."""
    order = random.Random(seed).sample(facts, len(facts))
    held, fresh = order[: min(LIVE, len(order) // 2)], order[min(LIVE, len(order) // 2) :]
    old = {f.digest: as_known(f) for f in held}
    live = {fact.digest: fact for fact in old.values()}
    centre = torch.from_numpy(model.mean)

    def keys(asked: Sequence[Fact]) -> npt.NDArray[np.float32]:
        ids = [encode_prompt(model.loaded.tokenizer, fact.prompt) for fact in asked]
        found: npt.NDArray[np.float32] = centred(lowest_keys(model.loaded, ids, BATCH), centre).numpy()
        return found

    row = dict(zip(live, keys(list(live.values())), strict=True))
    index, known = KeyIndex(len(model.mean), lambda facts: np.stack([row[f] for f in facts])), LiveIdentities(live)
    index.add(list(live), np.stack(list(row.values())))

    def met(asked: Sequence[tuple[Fact, str | None]]) -> tuple[dict[str, float], Floats]:
        """asked: facts, each with the digest of the one in force that it asks for.

        Beside shares of outcomes the probability of each fact's own pair, or the largest one where it has none.
        """
        vectors, counts, said = keys([new for new, _ in asked]), Counter[str](), []
        for (new, wanted), key, near in zip(asked, vectors, index.search(vectors, NEIGHBOURS, NEAREST), strict=True):
            beside = {d: float(row[d] @ key) for d in known.about(new)}
            scorer = scorer_of(new.source or "")
            decision = find_conflicts([new], live, scorer=scorer, candidates=[list((beside | dict(near)).items())])
            scores = {c.old: c.probability for c in decision.conflicts}
            said.append(scores.get(wanted, 0.0) if wanted else max(scores.values(), default=0.0))
            kinds = {c.old: c.kind for c in decision.conflicts if c.kind != "unrelated"}
            counts["found"] += wanted in kinds
            counts["alarms"] += any(digest != wanted for digest in kinds)
            counts["among the nearest"] += wanted in dict(near)
            counts["contradictions"] += kinds.get(wanted or "") == "contradiction"
        return {name: count / len(asked) for name, count in sorted(counts.items())}, np.array(said)

    again = [(new, old[f.digest].digest) for f in held for new in asked_again(f, seed)[:1]]
    turned = [(msgspec.structs.replace(new, target=f"not {new.target}"), digest) for new, digest in again]
    others: list[tuple[Fact, str | None]] = [(as_known(fact), None) for fact in fresh]
    (same, said), (another, _), (unrelated, noise) = met(again), met(turned), met(others)
    bound = np.sort(noise)[::-1][int(0.001 * len(noise))]
    return {
        "in force": len(live),
        "asked": {"again": len(again), "unrelated": len(others), "of a subject in force": int((noise > 0).sum())},
        "same answer": same,
        "another answer": another,
        "unrelated": unrelated,
        "recall at 1 false alarm in 1000": float((said > bound).mean()),
    }


def measure(model: Model, seed: int) -> dict[str, Any]:
    """All figures of one model: by its own scorers, and by the one that the package brings where that is another's."""
    own = fitted(model, seed)
    half = halves(model.training, seed)
    by: dict[str, Callable[[str], Scorer]] = {"own": own}
    if model.name != "atlas":
        by["fitted on atlas"] = lambda _: default_scorer()
    found: dict[str, Any] = {"scorers": [msgspec.to_builtins(own(name)) for name in (min(half), "")]}
    for what, facts in model.judged.items():
        parts = [[f for f in facts if (f.relation in half) == inside] for inside in (True, False)]
        texts = {r: [t for o, t in pairs if (o in half) == (r in half)] for r, pairs in model.neighbours.items()}
        chosen = [case for part in parts if len(part) > 8 for case in cases(part, texts, seed)]
        if what == "unknown":
            chosen += [Case(pair, "counterfact") for pair in model.wrapped]
        features = measure_pairs(model.loaded, torch.from_numpy(model.mean), [c.pair for c in chosen], BATCH)
        for name, scorers in by.items():
            entry = judge(chosen, features, scorers)
            if what == "known":
                entry["in a stream"] = in_a_stream(model, facts, scorers, seed)
            found[f"{what}, {name}"] = entry
            print(model.name, what, name, json.dumps(common.rounded(entry), indent=1), flush=True)
    return found


def main() -> None:
    """Measure both models, leave one result file and the reliability diagram."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    results = {model.name: measure(model, options.seed) for model in (atlas_model(options.seed), trex(options.seed))}
    save_figure(common.write("conflicts", {"seed": options.seed, **results}))


if __name__ == "__main__":
    main()
