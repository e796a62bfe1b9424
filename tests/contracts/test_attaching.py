"""A state on a model that somebody holds: the answers of the store, whatever the rule, and off again to the bit."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import lifelong_edit
from lifelong_edit.errors import ModelMismatchError, UsageError
from lifelong_edit.serving.turnstile import Turnstile
from lifelong_edit.timeline import Timeline
from tests.contracts.conftest import Kept
from tests.contracts.editing import ROWS

PROMPT = "The capital of Vienna 1 is"
TAKEN = [row for row in ROWS if row.name in ("gradient", "grace", "neurons", "wise", "retrieval")]


def held(timeline: Timeline) -> Any:
    """A model as a server holds it: wanting gradients, its mode of training on."""
    return AutoModelForCausalLM.from_pretrained(timeline.source, dtype=torch.float32).train()


def bits(model: Any) -> dict[str, bytes]:
    return {name: tensor.detach().numpy().tobytes() for name, tensor in model.state_dict().items()}


def answer(model: Any, tokenizer: Any, prompt: str) -> str:
    ids = tokenizer(prompt, return_tensors="pt")
    new = model.generate(**ids, max_new_tokens=8, do_sample=False)[0, ids["input_ids"].shape[1] :].tolist()
    if tokenizer.eos_token_id in new:
        new = new[: new.index(tokenizer.eos_token_id)]
    return str(tokenizer.decode(new))


@pytest.fixture
def store(request: pytest.FixtureRequest, kept: Kept, tmp_path: Path) -> Path:
    """A store with two steps, of the rule that is asked for."""
    row = getattr(request, "param", TAKEN[0])
    return shutil.copytree(kept(row, "lived"), tmp_path / "store")


@pytest.mark.parametrize("store", TAKEN, ids=lambda row: row.name, indirect=True)
def test_it_answers_as_in_the_store_and_comes_off_to_the_bit(store: Path) -> None:
    with Timeline.open(store, read_only=True) as timeline:
        fact = timeline.at(2).facts()[-1]
        said = {step: timeline.at(step).ask(fact.prompt, max_new_tokens=8) for step in (0, 1, 2)}
        model, tokenizer = held(timeline), AutoTokenizer.from_pretrained(timeline.source)
    before, modes = bits(model), [m.training for m in model.modules()]
    with lifelong_edit.attach(model, store, tokenizer=tokenizer) as attached:
        assert attached.step == 2 and not model.training
        assert answer(model, tokenizer, attached.put(fact.prompt)) == said[2]
        for step in (1, 0, 2):
            assert attached.refresh(step) == step
            assert answer(model, tokenizer, attached.put(fact.prompt)) == said[step]
    assert bits(model) == before and [m.training for m in model.modules()] == modes
    assert all(p.requires_grad for p in model.parameters()) and "generate" not in model.__dict__
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    with pytest.raises(UsageError, match="taken off"):
        attached.step  # noqa: B018
    with pytest.raises(UsageError, match="taken off"):
        attached.refresh(1)


def test_new_steps_are_followed_on_request_and_a_request_keeps_its_state(store: Path) -> None:
    with Timeline.open(store) as timeline:
        model = held(timeline)
        with lifelong_edit.attach(model, timeline) as attached:
            begun, moved = threading.Event(), []

            def refresh() -> None:
                begun.set()
                moved.append(attached.refresh())

            with attached.request() as step:
                timeline.rollback(1)
                assert step == 2
                mover = threading.Thread(target=refresh)
                mover.start()
                begun.wait()
                mover.join(0.2)
                assert not moved and attached.step == 2  # it waits
                with attached.request():  # of the same request: does not wait for the one that waits for it
                    pass
                with pytest.raises(UsageError, match="within a request"):
                    attached.refresh(1)
            mover.join()
            assert moved == [1] == [attached.step]
        timeline.rollback(2)  # the store is still open


def test_what_cannot_be_attached_is_refused_and_left_as_it_was(store: Path) -> None:
    with Timeline.open(store, read_only=True) as timeline:
        source, model = timeline.source, held(timeline)
    with pytest.raises(ModelMismatchError, match="fingerprint"):
        lifelong_edit.attach(AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16), store)
    with pytest.raises(UsageError, match="no step 9"):
        lifelong_edit.attach(model, store, at=9)
    assert model.training and "generate" not in model.__dict__
    with lifelong_edit.attach(model, store) as attached:
        with pytest.raises(UsageError, match="detach the other"):
            lifelong_edit.attach(model, store)
        attached.detach()
        attached.detach()


def test_nobody_is_inside_while_something_changes() -> None:
    turnstile, inside, seen = Turnstile(), [False] * 4, []

    def answering(number: int) -> None:
        for _ in range(200):
            with turnstile.request():
                inside[number] = True
                inside[number] = False

    threads = [threading.Thread(target=answering, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        with turnstile.change():
            seen.append(any(inside))
    for thread in threads:
        thread.join()
    assert not any(seen)
