"""SERAC at work: live facts, which of them a question asks for, and the model that reads the fact and answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lifelong_edit.bench import Bench, State
from lifelong_edit.editors.contract import Arrays, Given
from lifelong_edit.editors.locate.sites import block_of
from lifelong_edit.editors.malmen.network import NetworkSet
from lifelong_edit.editors.malmen.rule import unpack
from lifelong_edit.editors.mend.rule import require_network, require_rule
from lifelong_edit.editors.retrieval.encoding import Encoder, encoder_of, require_folder
from lifelong_edit.editors.retrieval.putting import LiveFacts, Remembering
from lifelong_edit.editors.ridge.together import slices
from lifelong_edit.editors.serac.network import SeracNetwork, SeracShape, distances
from lifelong_edit.editors.serac.overlay import Beginnings, switched
from lifelong_edit.editors.serac.settings import SeracSettings
from lifelong_edit.errors import ModelMismatchError
from lifelong_edit.facts import Fact, prompt_in
from lifelong_edit.models import EditableModule, LoadedModel
from lifelong_edit.models.families import is_linear, shape_of
from lifelong_edit.models.forms import SameQuestion
from lifelong_edit.settings import StoreSettings
from lifelong_edit.tasks import sentence_of, text_of

AT_ONCE = 512
"""Of so many facts the token states are held at a time."""


class Scope:
    """The scope classifier of a store. It keeps the vectors of facts that it met, which are the same at every state."""

    def __init__(self, encoder: Encoder, network: SeracNetwork) -> None:
        self._encoder, self._network = encoder, network
        self._known: dict[str, Tensor] = {}

    def vectors(self, texts: Sequence[str]) -> Tensor:
        """(n, width) float32 on the CPU."""
        with torch.no_grad():
            found: Tensor = self._network.scope(self._encoder.tokens(texts))
        return found.cpu()

    def of_facts(self, facts: Sequence[Fact]) -> Tensor:
        """The vectors of facts, of each as a sentence, (n, width)."""
        new = [fact for fact in facts if fact.digest not in self._known]
        for some in slices(new, AT_ONCE):
            self._known |= zip((f.digest for f in some), self.vectors([sentence_of(f) for f in some]), strict=True)
        return torch.stack([self._known[fact.digest] for fact in facts])


@dataclass(frozen=True)
class Recalled(Remembering):
    """The overlay of the rule: a fact before each question within its scope, which the counterfactual model answers.

    facts: in the order of their digests, so that what is answered does not depend on the order in which they came.
    """

    rule: SeracEditor
    _begun: Beginnings = field(default_factory=Beginnings, repr=False, kw_only=True)
    _edits: list[Tensor] = field(default_factory=list, repr=False, kw_only=True)

    @contextmanager
    def attach(self, model: Any) -> Iterator[None]:
        """Hook the counterfactual model's matrices."""
        with switched(model, self.rule.network.adapters(), self._begun.of):
            yield

    def found(self, text: str) -> tuple[Fact, float] | None:
        """The fact that a text is most like, and how much, exp(−‖a − b‖²); None without facts."""
        if not self.facts:
            return None
        if not self._edits:
            self._edits.append(self.rule.scope.of_facts(self.facts))
        apart = distances(self.rule.scope.vectors([text]), self._edits[0])
        nearest = int(apart.argmin())
        return self.facts[nearest], float(torch.exp(-apart[nearest]))

    def behind(self, question: SameQuestion) -> SameQuestion:
        """The question behind the fact within whose scope it is; itself where there is none, or no room."""
        found = self.found(prompt_in(text_of(question)))
        if found is None or found[1] <= self.rule.settings.threshold:
            return question
        behind = self.rule.before.behind(question, [found[0]])
        ids = self.rule.before.encoded(behind)
        if ids is None:
            return question
        self._begun.add(ids)
        return behind


class SeracEditor(LiveFacts):
    """Facts in, nothing out: the store remembers them."""

    def __init__(self, bench: Bench, network: SeracNetwork, encoder: Encoder) -> None:
        assert isinstance(bench.settings, SeracSettings)  # the registry pairs rules with their settings
        super().__init__(bench, bench.settings)
        self.settings, self.network, self.encoder = bench.settings, network, encoder
        self.scope = Scope(encoder, network)

    def told(self) -> dict[str, object]:
        """The threshold."""
        return {"threshold": self.settings.threshold}

    def overlay(self, state: State) -> Recalled:
        """The live facts, with the model that reads them."""
        return Recalled([state.live[digest] for digest in sorted(state.live)], self)


def shape_for(loaded: LoadedModel, settings: SeracSettings) -> SeracShape:
    """The sizes of networks for a model: every matrix within its numbered layers is one of the counterfactual model's.

    Raises UsageError as `encoder_of`, and where a named module stands in no layer.
    """
    encoder = encoder_of(loaded, settings.encoder, settings.micro_batch)
    layers = block_of(loaded.modules[-1]).rpartition(".")[0] + "."
    # A single expert sees some tokens alone, and no hook there can tell of which texts.
    within = {n: m for n, m in loaded.model.named_modules() if n.startswith(layers) and ".experts." not in n}
    matrices = {n: m for n, m in within.items() if is_linear(m)}
    return SeracShape(
        width=settings.width,
        states=encoder.tokens(["a"])[0].shape[-1],
        rank=settings.rank,
        adapted=tuple(matrices),
        shapes=tuple(shape_of(matrix) for matrix in matrices.values()),
        encoder=encoder.fingerprint,
    )


def make(bench: Bench) -> SeracEditor:
    """The rule with the networks that `init` fixed. Raises StoreDamagedError where there are none, or none readable."""
    networks = unpack(bench.fixed.rule)
    networks.check(bench.loaded.modules)
    return with_networks(bench, networks)


def with_networks(bench: Bench, networks: NetworkSet) -> SeracEditor:
    """The rule with networks at hand.

    Raises UsageError where they are for another rule or the encoder cannot be loaded, ModelMismatchError where they are
    for another model or encoder.
    """
    assert isinstance(bench.settings, SeracSettings)
    require_rule("serac", networks)
    encoder = _fitting(bench.loaded, networks, bench.settings)
    return SeracEditor(bench, networks.to(bench.loaded.device).serac(), encoder)


def _fitting(loaded: LoadedModel, networks: NetworkSet, settings: SeracSettings) -> Encoder:
    """The encoder. Raises ModelMismatchError where networks were trained for another one, or for other matrices."""
    shape = networks.config.serac
    assert isinstance(shape, SeracShape)  # its form says so
    encoder = encoder_of(loaded, settings.encoder, settings.micro_batch)
    if encoder.fingerprint != shape.encoder:
        raise ModelMismatchError(
            f"the scope classifier was trained on states of {_named(shape.encoder)}, the setting encoder names "
            f"{_named(encoder.fingerprint)}; set it as in the training"
        )
    modules = dict(loaded.model.named_modules())
    found = {n: shape_of(modules[n]) for n in shape.adapted if n in modules and is_linear(modules[n])}
    trained = dict(zip(shape.adapted, shape.shapes, strict=True))
    if odd := sorted(n for n in trained if found.get(n) != trained[n]):
        raise ModelMismatchError(
            f"the counterfactual model was trained for {odd[0]} of shape {trained[odd[0]]}, this model has "
            f"{found.get(odd[0], 'no such matrix')}; train one for this model"
        )
    return encoder


def _named(fingerprint: str) -> str:
    return f"the encoder {fingerprint}" if fingerprint else "the base model"


def require(settings: StoreSettings, given: Given, modules: Sequence[EditableModule] = ()) -> None:
    """Raise UsageError without networks, for those of another rule, and for an encoder that is no folder.

    Raises ModelMismatchError for those of other modules.
    """
    assert isinstance(settings, SeracSettings)
    require_network("serac", given, modules)
    if settings.encoder is not None:
        require_folder(settings.encoder)


def fix(loaded: LoadedModel, settings: StoreSettings, given: Given) -> Arrays:
    """Nothing of its own, but the networks have to fit the model. Raises ModelMismatchError where they do not."""
    assert isinstance(settings, SeracSettings)
    _fitting(loaded, unpack(given.network), settings)
    return {}
