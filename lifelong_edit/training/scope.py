"""Training SERAC's two networks together (arXiv 2206.06520, section 3): which questions, and what the answer is.

Each step draws facts as edits. Of each there is a question within its scope, answered by the counterfactual model that
reads the fact, and questions without. Facts, split, optimiser, validation and checkpoints are those of every network.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from lifelong_edit.bench import Bench
from lifelong_edit.editors.malmen.network import NetworkSet
from lifelong_edit.editors.ridge.together import slices
from lifelong_edit.editors.serac.network import distances, scope_loss
from lifelong_edit.editors.serac.overlay import Always
from lifelong_edit.editors.serac.rule import SeracEditor, with_networks
from lifelong_edit.errors import BadInputError
from lifelong_edit.facts import Fact, mentions, prompt_in, put_in, question_of
from lifelong_edit.models import by_length
from lifelong_edit.policies import normalise
from lifelong_edit.tasks import form_of, question_in, sentence_of
from lifelong_edit.tracing.rows import Row
from lifelong_edit.training.episodes import Trainer

WEIGHT = 0.1
"""Of the counterfactual model's loss beside that of the scope classifier."""
HARD = 0.5
"""How often a question out of scope is a hard one."""
NEAREST, SKIPPED = 100, 25
"""Among so many of the most similar prompts hard ones are drawn, and how many are passed over as published: there the
nearest may ask the same, which here subject and relation say."""
TEMPERATURE = 0.1
WIDTH = 256
"""The width of the states of the model on which the two shares below were chosen. What a step of Adam does to an output
grows with the width, so they are divided by that of another model."""
SHIFTS, VALUES = 5.0, 0.1
"""Adam's rate for the counterfactual model's low-rank shifts, and for the values of the scope classifier, as shares of
the rate of any network. At a share of one the first are learned in some hundred steps and not in fifty, and the second
move by more than they are, so that a third of the hard questions stay in scope."""
OUTSIDE = 2
"""Questions out of scope of each fact in a step."""

T = TypeVar("T")


class Questions:
    """What is asked about training facts, within their scope and without. units: of their prompts, (n, d) length 1."""

    def __init__(self, facts: Sequence[Fact], units: Tensor, published: bool) -> None:
        self.facts, self._units, self._published = facts, units, published
        self._similar: dict[int, tuple[list[int], Tensor]] = {}
        self._about: dict[str, list[Fact]] = {}
        for fact in facts:
            self._about.setdefault(normalise(fact.about), []).append(fact)

    def inside(self, fact: Fact) -> list[str]:
        """The fact's own prompt, its rephrases, and the words of its turn where these are others."""
        return list(dict.fromkeys([fact.prompt, *fact.rephrases, prompt_in(question_of(fact))]))

    def near(self, fact: Fact, asked: str, generator: torch.Generator) -> list[str]:
        """Neighbours that the fact brings, what else is known of its subject, and `asked` of another subject."""
        found = [probe.prompt for probe in fact.locality]
        found += [f.prompt for f in self._about[normalise(fact.about)] if other(fact, f)]
        stranger = one_of(self.facts, generator)
        if stranger.subject and other(fact, stranger) and mentions(asked, fact.subject):
            found.append(put_in(asked, fact.subject, stranger.subject))
        return found

    def similar(self, number: int) -> tuple[list[int], Tensor]:
        """The numbers of the facts whose prompts are hard for a fact, by its number, and how often each is drawn."""
        if number not in self._similar:
            cosines = self._units @ self._units[number]
            order = cosines.argsort(descending=True).tolist()
            found = [i for i in order[: 4 * NEAREST] if other(self.facts[number], self.facts[i])]
            found = found[SKIPPED if self._published else 0 : NEAREST]
            self._similar[number] = found, (cosines[found] / TEMPERATURE).softmax(0)
        return self._similar[number]

    def hard(self, number: int, generator: torch.Generator) -> str | None:
        """The prompt of another fact, drawn by how similar it is to that of a fact, by its number."""
        found, weights = self.similar(number)
        if not found:
            return None
        return self.facts[found[int(torch.multinomial(weights, 1, generator=generator))]].prompt

    def outside(self, number: int, asked: str, generator: torch.Generator) -> str:
        """A question out of the scope of a fact, by its number: a hard one, a near one, else any other."""
        fact = self.facts[number]
        drawn = float(torch.rand((), generator=generator)) < HARD
        if drawn and (hard := self.hard(number, generator)) is not None:
            return hard
        if near := self.near(fact, asked, generator):
            return one_of(near, generator)
        return one_of([text for f in self.facts if other(fact, f) for text in self.inside(f)], generator)


def other(fact: Fact, than: Fact) -> bool:
    """Whether a fact asks for something else than another, as far as subject and relation say."""
    if normalise(fact.about) != normalise(than.about):
        return True
    return bool(fact.relation and than.relation) and normalise(fact.relation or "") != normalise(than.relation or "")


def one_of(found: Sequence[T], generator: torch.Generator) -> T:
    """One of several, each with the same probability."""
    return found[int(torch.randint(len(found), (), generator=generator))]


@dataclass
class SeracTrainer(Trainer):
    """0.1 of the cross-entropy of answers behind their facts, −log p within and −log(1 − p) out of scope, in a mean."""

    def groups(self) -> list[dict[str, Any]]:
        """The parameters of what is not as wide as the model's states have the rate of any network."""
        network, rate = self.networks.serac(), self.train.rate
        shifts = list(network.adapters().values())
        wide, narrow = WIDTH / network.scope.mean.numel(), WIDTH / min(a.a.shape[0] for a in shifts)
        scope = network.scope
        return [
            {"params": [scope.inner, scope.bias, scope.outer], "lr": rate},
            {"params": [scope.query], "lr": rate * wide},
            {"params": [scope.value], "lr": rate * wide * VALUES},
            {"params": [p for adapter in shifts for p in adapter.parameters()], "lr": rate * narrow * SHIFTS},
        ]

    def begin(self) -> None:
        """The rule as it is trained."""
        self.serac: SeracEditor = with_networks(self.bench, self.networks)
        self._questions: Questions | None = None

    def run_episode(self, facts: Sequence[Fact]) -> None:
        """So many steps as an episode has batches; of which facts and questions is a function of its number alone."""
        generator = torch.Generator().manual_seed(1_000_003 * self.train.seed + self.episode)
        questions = self.questions(facts)
        for _ in range(self.train.batches):
            drawn = torch.randperm(len(facts), generator=generator).tolist()
            self.step(questions, drawn[: self.train.batch_size], generator)
        self.episode += 1

    def questions(self, facts: Sequence[Fact]) -> Questions:
        """What is asked about facts; how similar prompts are is told once, by the mean of their token states."""
        if self._questions is None or self._questions.facts is not facts:
            states = self.serac.encoder.states([fact.prompt for fact in facts])
            units = torch.nn.functional.normalize((states - states.mean(0)) / states.std(0).clamp_min(1e-6), dim=-1)
            self._questions = Questions(facts, units, self.serac.settings.negatives == "published")
        return self._questions

    def step(self, questions: Questions, drawn: Sequence[int], generator: torch.Generator) -> None:
        """One step of the optimiser, on the facts of these numbers."""
        facts = [questions.facts[i] for i in drawn]
        asked = [one_of(questions.inside(fact), generator) for fact in facts]
        outside = [
            [questions.outside(i, text, generator) for _ in range(OUTSIDE)]
            for i, text in zip(drawn, asked, strict=True)
        ]
        self.clear_what_is_spent()
        loss = WEIGHT * self.counterfactual(facts, asked, generator)
        scope = self.scope(facts, asked, outside)
        scope.backward()
        self.descend(loss + float(scope.detach()))

    def scope(self, facts: Sequence[Fact], asked: Sequence[str], outside: Sequence[Sequence[str]]) -> Tensor:
        """The scope classifier's loss. asked: a question in scope of each fact. outside: some that are not."""
        edits = [sentence_of(fact) for fact in facts]
        texts = list(dict.fromkeys([*edits, *asked, *(text for own in outside for text in own)]))
        place = {text: i for i, text in enumerate(texts)}
        vectors = self.serac.network.scope(self.serac.encoder.tokens(texts))
        own = vectors[[place[text] for text in edits]]
        within = distances(vectors[[place[text] for text in asked]], own)
        without = [vectors[[place[text] for text in column]] for column in zip(*outside, strict=True)]
        return scope_loss(within, torch.stack([distances(column, own) for column in without]))

    def counterfactual(self, facts: Sequence[Fact], asked: Sequence[str], generator: torch.Generator) -> float:
        """The counterfactual model's mean loss, whose gradients are added, weighed. One form of the model a fact."""
        loaded, task = self.bench.loaded, self.bench.task
        rows = []
        for fact, text in zip(facts, asked, strict=True):
            question = question_in(loaded, one_of(loaded.forms.names, generator), fact if text == fact.prompt else text)
            behind = self.serac.before.behind(question, [fact])
            with suppress(BadInputError):  # too long behind a fact: the base model would answer
                rows.append(Row(task.encode(loaded, behind, fact.answer), "new", form=form_of(question)))
        total, world = 0.0, loaded.world

        def work(chosen: Sequence[int]) -> tuple[float, list[Tensor | None]]:
            part = [rows[i] for i in chosen]
            batch = task.collate(loaded, [row.encoded for row in part])
            losses, _ = task.loss(task.logits(loaded, batch), batch, part)
            loss = losses.sum() / len(facts)
            return float(loss.detach()), self.gradients(WEIGHT * loss)

        batches = list(by_length([len(row.encoded.ids) for row in rows], self.bench.settings.micro_batch))
        with loaded.at(Always(self.serac.network.adapters())):
            for group in slices(batches, world.at_once):
                for loss, found in world.each(group, work):
                    self.take(found)
                    total += loss
        return total


def calibrate_serac(bench: Bench, networks: NetworkSet, facts: Sequence[Fact]) -> None:
    """Centre and scale of token states, by a sample; the vectors of different facts begin a unit apart."""
    rule = with_networks(bench, networks)
    networks.serac().scope.observe(rule.encoder.tokens([sentence_of(fact) for fact in facts]))
