"""What every rule that edits encoder-decoders promises of them: what of the grid a second kind of model can break.

`test_editors` runs all of them on a decoder. Here rows differ in number by module, and questions are read beside what
is written.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForSeq2SeqLM

from lifelong_edit.editors.registry import RULES, rule_of
from lifelong_edit.errors import UsageError
from lifelong_edit.export.formats import export
from lifelong_edit.facts import Probe
from lifelong_edit.settings import StoreSettings
from lifelong_edit.tasks import task_of
from lifelong_edit.timeline import Timeline
from tests.contracts.conftest import Fresh, Kept, Options, beginnings, lives, write_network
from tests.contracts.editing import Row
from tests.contracts.test_editors import QUESTIONS, EditorContract
from tests.models.test_encoder_decoders import alone
from tests.zoo import Zoo

MODULES = ("1@subject", "3", "5-6")
ENCODER = ("2",)
ONE_SIDED = ("grace",)
TAKES = ("gradient", "malmen", "mend", "ultraedit", "ft", "ft-replay", "locft", "grace", "li", "simie+gradient")


class PairRow(Row):
    """A rule with the modules of a T5."""

    def settings(self, **changes: Any) -> StoreSettings:
        """Small settings, some of them changed."""
        return super().settings(**({"modules": ENCODER if self.name in ONE_SIDED else MODULES} | changes))


ROWS = [PairRow(name, "published" if name == "malmen" else "") for name in TAKES]
Make = Callable[..., Timeline]


@pytest.fixture(scope="module")
def network(tiny_t5: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`network(form)`: the folder of an untrained hypernetwork for the tiny T5."""

    def make(form: str) -> Path:
        folder = tmp_path_factory.mktemp("networks") / form
        write_network(folder, tiny_t5, MODULES, form, unit=-0.1)
        return folder

    return make


@pytest.fixture(scope="module", params=ROWS, ids=str)
def row(request: pytest.FixtureRequest) -> Row:
    found: Row = request.param
    return found


@pytest.fixture(scope="module")
def options(tiny_t5: Path, sentences: list[str], network: Callable[[str], Path]) -> Callable[[Row], Options]:
    """What `Timeline.create` takes for a store of a row."""
    preserve = [Probe(prompt=s.rsplit(" ", 1)[0], subject=f"none {i}") for i, s in enumerate(sentences)]
    common = {"model": str(tiny_t5), "preserve": preserve, "text": [" ".join(sentences * 20)]}
    networks = cache(network)

    def of(row: Row) -> Options:
        given = {"hypernetwork": str(networks(row.form))} if "network" in row.rule.needs else {}
        return {**common, **given, "settings": row.settings()}

    return of


@pytest.fixture(scope="module")
def _fresh(zoo: Zoo, options: Callable[[Row], Options]) -> Fresh:
    return beginnings(zoo, options)


@pytest.fixture(scope="module")
def kept(zoo: Zoo, options: Callable[[Row], Options], _fresh: Fresh) -> Kept:
    return lives(zoo, options, _fresh)


class TestRulesOnEncoderDecoders:
    """Behaviours of the grid."""

    test_the_same_batch = EditorContract.test_the_same_batch_at_the_same_state_gives_the_same_digests
    test_a_rollback = EditorContract.test_a_rollback_goes_back_to_the_bit
    test_any_micro_batch = EditorContract.test_any_micro_batch_gives_the_same_change
    test_what_is_retracted = EditorContract.test_what_is_retracted_was_never_there
    test_the_model_is_the_base_again = EditorContract.test_the_model_is_the_base_again_after_everything
    test_asking_many = EditorContract.test_asking_many_is_asking_each

    def test_an_export_answers_the_same(self, row: Row, lived: Make, tmp_path: Path) -> None:
        if "transformers" not in row.rule.exports:
            pytest.skip("the rule does not export")
        timeline = lived()
        with timeline.at("head").standing() as loaded:
            said = task_of(loaded).answer(loaded, QUESTIONS, 6)
            export("transformers", loaded, timeline.overlay(2), tmp_path / "out")
        model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out").eval()
        assert [alone(loaded, model, question, 6) for question in QUESTIONS] == said
        assert said != task_of(loaded).answer(loaded, QUESTIONS, 6)


def test_rules_say_which_of_them_edit_encoder_decoders(tiny_t5: Path, tmp_path: Path, sentences: list[str]) -> None:
    able = {name for name in RULES if "seq2seq" in rule_of(name).tasks}
    assert able == {*TAKES} - {"simie+gradient"}
    for name in ("wise", "memit"):
        with pytest.raises(UsageError, match=f"found an encoder-decoder, but the editing rule {name} edits decoders "):
            Timeline.create(
                tmp_path / name, model=str(tiny_t5), text=sentences * 20, settings=rule_of(name).settings(editor=name)
            )
    with pytest.raises(UsageError, match=r"found the decoder's module .* expected one of the encoder"):
        Timeline.create(
            tmp_path / "grace", model=str(tiny_t5), text=sentences * 20,
            settings=rule_of("grace").settings(editor="grace", modules=("5",)),
        )  # fmt: skip
