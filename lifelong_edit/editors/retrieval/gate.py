"""Which live facts a question asks for: those whose subject it mentions and whose words are like its own."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lifelong_edit.editors.retrieval.encoding import Encoder
from lifelong_edit.facts import Fact, Probe, mentions, prompt_in, put_in, question_of
from lifelong_edit.tracing.rows import draw, phrasings_of

MEAN, DEVIATION, THRESHOLD, ENCODER = (f"retrieval/{name}" for name in ("mean", "deviation", "threshold", "encoder"))
ANYTHING = "it"
"""Stands for a subject that was taken out. Of the words tried on zsRE this one told questions apart best."""
PROMPTS = 400
"""Prompts of which pairs are compared when the threshold is chosen, at the most."""


@dataclass(frozen=True)
class Scale:
    """What makes vectors comparable, and from which cosine on two texts ask the same. mean, deviation: (d,) float32."""

    mean: Tensor
    deviation: Tensor
    threshold: float

    def units(self, states: Tensor) -> Tensor:
        """(n, d): centred, scaled, of length one."""
        return torch.nn.functional.normalize((states - self.mean) / self.deviation, dim=-1)

    def arrays(self, encoder: Encoder) -> dict[str, npt.NDArray[Any]]:
        """What `init` fixes of it, by name."""
        return {
            MEAN: self.mean.numpy(),
            DEVIATION: self.deviation.numpy(),
            THRESHOLD: np.array([self.threshold], np.float32),
            ENCODER: np.frombuffer(encoder.fingerprint.encode(), np.uint8),
        }

    @classmethod
    def of(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> Scale:
        """The inverse of `arrays`."""
        mean, deviation = (torch.from_numpy(arrays[name].copy()) for name in (MEAN, DEVIATION))
        return cls(mean, deviation, float(arrays[THRESHOLD][0]))


def calibrated(encoder: Encoder, probes: Sequence[Probe], mentioned: bool, false_alarms: float, seed: int) -> Scale:
    """The scale by preserved prompts, and the threshold that so many pairs of them pass which ask different things.

    Different are prompts of different subjects and relations, as far as they say. mentioned: subjects are taken out.
    Where they stay, a prompt with another subject put in asks another thing as well, and neither more of these pairs
    pass than `false_alarms` nor more of those. A sentence transformer's vectors are taken as they are.
    """
    texts: dict[str, Probe] = {}
    for probe in probes:
        texts.setdefault(without(probe.prompt, probe.subject) if mentioned else probe.prompt, probe)
    names, of = list(texts), list(texts.values())
    chosen = draw(len(names), min(PROMPTS, len(names)), "retrieval", seed)
    names, of = [names[i] for i in chosen], [of[i] for i in chosen]
    states = encoder.states(names)
    mean, deviation = states.mean(0), states.std(0).clamp_min(1e-6)
    if encoder.fingerprint:
        mean, deviation = torch.zeros_like(mean), torch.ones_like(deviation)
    scale = Scale(mean, deviation, 1.0)
    units = scale.units(states)
    cosines = (units @ units.T).numpy()
    apart = [cosines[i, j] for i in range(len(of)) for j in range(i) if _differ(of[i], of[j])]
    found = [np.quantile(apart, 1 - false_alarms)] if apart else []
    if not mentioned and (swapped := _swapped(of)):
        others = scale.units(encoder.states([text for _, text in swapped]))
        near = (units[[i for i, _ in swapped]] * others).sum(1).numpy()
        found.append(np.quantile(near, 1 - false_alarms))
    return Scale(mean, deviation, float(max(found, default=1.0)))


def _differ(one: Probe, other: Probe) -> bool:
    """Whether two prompts ask for different things, as far as they say."""
    same_subject = one.subject is not None and one.subject.casefold() == (other.subject or "").casefold()
    return not same_subject and (one.relation is None or one.relation != other.relation)


def _swapped(probes: Sequence[Probe]) -> list[tuple[int, str]]:
    """Prompts with the subject of the next one that has another: the number of each, and its text so."""
    named = [(i, p) for i, p in enumerate(probes) if p.subject and mentions(p.prompt, p.subject)]
    found = []
    for n, (i, probe) in enumerate(named):
        others = (p.subject for _, p in [*named[n + 1 :], *named[:n]])
        other = next((s for s in others if s and s.casefold() != str(probe.subject).casefold()), None)
        if other is not None:
            found.append((i, put_in(probe.prompt, str(probe.subject), other)))
    return found


def without(text: str, subject: str | None) -> str:
    """A text with a subject taken out."""
    return put_in(text, subject, ANYTHING) if subject else text


class Gate:
    """The gate of a store. It keeps the vectors of facts that it met, which are the same at every state."""

    def __init__(self, encoder: Encoder, scale: Scale, mentioned: bool, phrasings: int) -> None:
        self._encoder, self.scale = encoder, scale
        self._mentioned, self._phrasings = mentioned, phrasings
        self._known: dict[str, Tensor] = {}

    def found(self, text: str, facts: Sequence[Fact]) -> list[tuple[Fact, float]]:
        """The facts that a text asks for, each with its cosine, the most alike first."""
        text = prompt_in(text)
        if self._mentioned:
            spoken = folded(text)
            facts = [f for f in facts if f.subject and said_in(f.subject, spoken) and mentions(text, f.subject)]
        if not facts:
            return []
        self._meet(facts)
        asked = {f.digest: without(text, f.subject) if self._mentioned else text for f in facts}
        distinct = list(dict.fromkeys(asked.values()))
        units = dict(zip(distinct, self.scale.units(self._encoder.states(distinct)), strict=True))
        cosines = {f.digest: float((self._known[f.digest] @ units[asked[f.digest]]).max()) for f in facts}
        passed = [(f, cosines[f.digest]) for f in facts if cosines[f.digest] >= self.scale.threshold]
        return sorted(passed, key=lambda pair: (-pair[1], pair[0].digest))

    def _meet(self, facts: Sequence[Fact]) -> None:
        new = [fact for fact in facts if fact.digest not in self._known]
        texts = [(fact, text) for fact in new for text in self.texts_of(fact)]
        if texts:
            units = self.scale.units(self._encoder.states([text for _, text in texts]))
            for fact in new:
                self._known[fact.digest] = units[[i for i, (of, _) in enumerate(texts) if of is fact]]

    def texts_of(self, fact: Fact) -> list[str]:
        """What a question is compared with: the fact's prompt, its question, and some of its rephrases."""
        texts = dict.fromkeys([fact.prompt, prompt_in(question_of(fact)), *phrasings_of(fact, self._phrasings)])
        return list(dict.fromkeys(without(t, fact.subject) if self._mentioned else t for t in texts))


def folded(text: str) -> str:
    """A text in which a subject that it mentions (`facts.mentions`) is found word by word; quickly told."""
    return unicodedata.normalize("NFD", text).casefold().replace("ı", "i")


def said_in(subject: str, spoken: str) -> bool:
    """Whether each word of a subject is in a folded text: where one is not, the subject is not mentioned."""
    return all(word in spoken for word in folded(subject).split())
