"""The codebook: an independent telling of its rules, values as a bare loop finds them, and texts read as written."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from lifelong_edit.bench import Bench, Fixed, State
from lifelong_edit.editors.contract import Change, Entries, Lesson, moved_by
from lifelong_edit.editors.grace.codebook import Codebook, Folding, entry_of
from lifelong_edit.editors.grace.overlay import Memory
from lifelong_edit.editors.grace.rule import GraceEditor, waves
from lifelong_edit.editors.grace.settings import GraceSettings, Replacement
from lifelong_edit.errors import UsageError
from lifelong_edit.facts import Fact
from lifelong_edit.models import BASE, LoadedModel, encode, encode_prompt
from lifelong_edit.stores import Entry
from lifelong_edit.tasks import task_of
from lifelong_edit.tracing.rows import fact_rows

SMALL: dict[str, Any] = {"text_tokens": 3000, "micro_batch": 8, "steps": 5, "rate": 0.3, "radius": 0.05}
WAYS: tuple[Replacement, ...] = ("replace_last", "replace_all", "replace_prompt")


def editor_of(loaded: LoadedModel, fixed: Fixed, **changes: Any) -> GraceEditor:
    return GraceEditor(Bench(loaded, GraceSettings(**(SMALL | changes)), fixed))


def taught(editor: GraceEditor, state: State, facts: list[Fact]) -> State:
    """The state after a batch; its report is thrown away."""
    return moved_by(state, editor.learn(state, Lesson(facts)), facts)


def entries(change: Change) -> dict[str, Entry]:
    """What a change brings, by fact."""
    brought = change.parts["codebook"]
    assert isinstance(brought, Entries)
    return {digest: entry for made in brought.make() for digest, entry in made.items()}


# -- the rules


def told_again(points: list[tuple[float, ...]], labels: list[str], start: float) -> list[dict[str, Any]]:
    """GRACE as its specification says, in plain Python: deferral radii, growth, splits."""
    book: list[dict[str, Any]] = []
    for number, (point, label) in enumerate(zip(points, labels, strict=True)):
        apart = [math.dist(point, key["at"]) for key in book]
        if not book or (d := min(apart)) > start + book[apart.index(d)]["reach"]:
            book.append({"at": point, "label": label, "reach": start, "value": number})
            continue
        nearest = book[apart.index(d)]
        if nearest["label"] != label:
            nearest["reach"] = d / 2 - 1e-5
            book.append({"at": point, "label": label, "reach": d / 2, "value": number})
        else:
            nearest["value"] = number
            if d > nearest["reach"]:
                nearest["reach"] = d
    return book


@pytest.mark.parametrize("seed", range(20))
def test_keys_grow_and_split_as_specified(seed: int) -> None:
    random = np.random.default_rng(seed)
    points = random.uniform(0, 4, (30, 2)).astype(np.float32)
    labels = [str(n) for n in random.integers(0, 3, 30)]
    book, anew = Codebook(0.5), 0
    for number, (point, label) in enumerate(zip(points, labels, strict=True)):
        anew += book.put(point, label.encode(), np.array([number]))[1]
    wanted = told_again([tuple(map(float, p)) for p in points], labels, 0.5)
    assert [tuple(map(float, key)) for key in book.keys] == [key["at"] for key in wanted]
    assert book.radii == pytest.approx([key["reach"] for key in wanted], rel=1e-6)
    assert [int(value[0]) for value in book.values] == [key["value"] for key in wanted]
    assert anew == len(wanted) < 30, "no two points share a key"


def test_the_same_question_with_another_answer_takes_its_place() -> None:
    """And gives it back where it goes; halved radii of length zero would answer neither."""
    book, point = Codebook(0.5), np.ones(3, np.float32)
    book.put(point, b"a", np.array([0]))
    assert book.put(point + np.float32(1e-6), b"b", np.array([1])) == (0, True)
    assert (len(book.keys), book.labels, int(book.values[0][0])) == (1, [b"b"], 1)
    assert book.radii[0] >= 0.5


def test_what_is_gone_was_never_there() -> None:
    """Radii are made anew of the entries that are left, in their order, whatever was folded before."""
    points = np.array([[0.0], [0.8], [1.2], [5.0]], np.float32)
    made = [
        entry_of(points[i : i + 1], np.array([[i]]), [label * 16], [i])
        for i, label in enumerate((b"a", b"a", b"b", b"a"))
    ]
    folding = Folding(0.5)
    whole = folding.of(made)
    assert whole.radii == pytest.approx([0.6 - 1e-5, 0.6, 0.5]) and [int(v[0]) for v in whole.values] == [1, 2, 3]
    left = folding.of([made[3], made[1], made[2]])
    assert left.radii == pytest.approx([0.2 - 1e-5, 0.2, 0.5]), "the second is the first to have its key now"
    assert [float(key[0]) for key in left.keys] == pytest.approx([0.8, 1.2, 5.0])
    longer = Folding(0.5)
    longer.of(made[:2])
    assert longer.of(made).radii == whole.radii


def test_rows_of_one_key_wait_for_each_other() -> None:
    assert list(waves([3, 1, 3, 2, 3])) == [[0, 1, 3], [2], [4]]
    assert list(waves([])) == []


# -- values


@pytest.mark.parametrize("replacement", WAYS)
def test_a_value_is_what_a_bare_loop_finds(
    loaded: LoadedModel, fixed: Fixed, news: list[Fact], replacement: Replacement
) -> None:
    """Adam on what stands in the place of the module's output, the loss that of the target; facts of a batch alone."""
    editor = editor_of(loaded, fixed, replacement=replacement, begin="warm")
    found = entries(editor.learn(State(), Lesson(news[:3])))
    module = loaded.model.get_submodule(editor.module)
    for fact in news[:3]:
        encoded = encode(loaded.tokenizer, fact.prompt, fact.target)
        ids, at = torch.tensor([encoded.ids]), encoded.answer_start - 1
        where = {"replace_last": slice(at, at + 1), "replace_prompt": slice(0, at), "replace_all": slice(None)}
        seen: list[torch.Tensor] = []
        handle = module.register_forward_hook(lambda _, inputs, output, seen=seen: seen.extend((inputs[0], output)))
        with torch.no_grad():
            loaded.model(input_ids=ids)
        handle.remove()
        torch.testing.assert_close(torch.from_numpy(found[fact.digest].rows["key"][0]), seen[0][0, at])
        value = seen[1][0, at].clone().requires_grad_()

        def put(_: Any, __: Any, output: Any, value: Any = value, at: slice = where[replacement]) -> Any:
            moved = output.clone()
            moved[:, at] = value
            return moved

        handle = module.register_forward_hook(put)
        adam = torch.optim.Adam([value], lr=SMALL["rate"])
        for _ in range(SMALL["steps"]):
            logits = loaded.model(input_ids=ids).logits[0, at:-1]
            loss = torch.nn.functional.cross_entropy(logits, ids[0, at + 1 :])
            adam.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            adam.step()
        handle.remove()
        torch.testing.assert_close(
            torch.from_numpy(found[fact.digest].rows["value"][0]), value.detach(), rtol=1e-3, atol=1e-3
        )


def same_answer(facts: list[Fact]) -> list[Fact]:
    """Facts with the target of the first."""
    return [Fact(subject=f.subject, prompt=f.prompt, target=facts[0].target) for f in facts]


def test_prompts_that_share_a_key_go_on_from_its_value(loaded: LoadedModel, fixed: Fixed, news: list[Fact]) -> None:
    """One after the other or in one batch; and where the first goes, the second has the key."""
    alike = same_answer(news[:3])
    editor = editor_of(loaded, fixed, radius=50.0)
    one = State()
    for fact in alike:
        one = taught(editor, one, [fact])
    together = taught(editor, State(), alike)
    for digest, entry in together.parts["codebook"].items():
        np.testing.assert_allclose(
            one.parts["codebook"][digest].rows["value"], entry.rows["value"], rtol=1e-4, atol=1e-4
        )
    memory = editor.overlay(one)
    assert isinstance(memory, Memory) and len(memory.keys) == 1
    last = one.parts["codebook"][alike[2].digest].rows["value"][0]
    assert torch.equal(memory.values[0], torch.from_numpy(last))
    fresh = taught(editor, State(), alike[2:])
    assert not np.allclose(fresh.parts["codebook"][alike[2].digest].rows["value"][0], last), "it began anew"
    left = State(parts={"codebook": {f.digest: one.parts["codebook"][f.digest] for f in alike[1:]}})
    second = editor.overlay(left)
    assert isinstance(second, Memory)
    assert torch.equal(second.keys[0], torch.from_numpy(left.parts["codebook"][alike[1].digest].rows["key"][0]))


def test_a_radius_that_grew_reaches_what_it_grew_to(loaded: LoadedModel, fixed: Fixed, news: list[Fact]) -> None:
    """Read again among other texts, where rounding is another."""
    alike = same_answer(news[:2])
    apart = [entry.rows["key"][0] for entry in entries(editor_of(loaded, fixed).learn(State(), Lesson(alike))).values()]
    distance = float(np.linalg.norm(apart[0] - apart[1]))
    editor = editor_of(loaded, fixed, radius=0.6 * distance)
    memory = editor.overlay(taught(editor, State(), alike))
    assert isinstance(memory, Memory) and len(memory.keys) == 1
    assert float(memory.radii[0]) == pytest.approx(distance, rel=1e-2)
    for count in (1, 5, 9):
        keys, _ = editor._read(fact_rows(loaded, [alike[1], *news[2 : 2 + count]], 0))
        assert memory.match(torch.from_numpy(keys))[0] == 0


def test_a_retired_fact_has_no_say(loaded: LoadedModel, fixed: Fixed, news: list[Fact]) -> None:
    """Its key is gone before its successor is placed."""
    editor = editor_of(loaded, fixed, radius=50.0)
    state = taught(editor, State(), news[:1])
    other = editor.learn(state, Lesson(news[1:2], retire=[news[0].digest]))
    beside = editor.learn(state, Lesson(news[1:2]))
    assert (other.report["keys"], beside.report["keys"]) == (1, 2)


def test_a_warm_start_is_refused(loaded: LoadedModel, fixed: Fixed, news: list[Fact]) -> None:
    with pytest.raises(UsageError, match="found a warm start, expected none"):
        editor_of(loaded, fixed).relearn(news[:1], start={})


# -- texts


def test_matches_are_those_of_exact_distances() -> None:
    """Near ones too, far from the origin, where products round: by float64."""
    random = np.random.default_rng(0)
    keys = (random.standard_normal((40, 16)) + 30).astype(np.float32)
    inputs = np.concatenate([keys + 1e-3 * random.standard_normal((40, 16)), random.standard_normal((40, 16)) + 30])
    inputs = inputs.astype(np.float32).reshape(4, 20, 16)
    radii = random.uniform(0, 5, 40).astype(np.float32)
    found = Memory("m", torch.from_numpy(keys), torch.zeros(40, 2), torch.from_numpy(radii)).match(
        torch.from_numpy(inputs)
    )
    distance = np.linalg.norm(inputs.reshape(-1, 1, 16).astype(np.float64) - keys, axis=-1)
    nearest = distance.argmin(1)
    wanted = np.where(distance.min(1) <= radii[nearest], nearest, -1)
    assert found.flatten().tolist() == wanted.tolist()
    assert found.shape == (4, 20) and 40 < (wanted >= 0).sum() < 80


@pytest.mark.parametrize("replacement", WAYS)
def test_what_is_written_step_by_step_is_what_is_read(
    loaded: LoadedModel, fixed: Fixed, news: list[Fact], replacement: Replacement
) -> None:
    """Greedily with a cache, many at a time, padded on the left: as each text read anew for every token."""
    editor = editor_of(loaded, fixed, replacement=replacement)
    state = taught(editor, State(), news[:4])
    prompts = [fact.prompt for fact in news[:6]]
    overlay = editor.overlay(state)
    with loaded.at(overlay):
        written = task_of(loaded).answer(loaded, prompts, 6)
        alone = [task_of(loaded).answer(loaded, [prompt], 6)[0] for prompt in prompts]
    assert written == alone
    for prompt, said in zip(prompts, written, strict=True):
        ids = encode_prompt(loaded.tokenizer, prompt)
        for token in said.ids:
            with loaded.at(overlay), torch.no_grad():
                logits = loaded.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
            assert int(logits.argmax()) == token
            ids.append(token)
    with loaded.at(BASE):
        base = task_of(loaded).answer(loaded, prompts, 6)
    assert written[4:] == base[4:] and written[:4] != base[:4]


def test_padding_is_never_answered(loaded: LoadedModel, news: list[Fact]) -> None:
    """What stands behind a text is none of it, be it as near to a key as can be."""
    ids = torch.tensor([[*encode_prompt(loaded.tokenizer, news[1].prompt), 0, 0, 0]])
    mask = torch.ones_like(ids)
    mask[:, -3:] = 0
    module, inputs = loaded.modules[0], list[torch.Tensor]()
    handle = loaded.model.get_submodule(module.name).register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    with loaded.at(BASE), torch.no_grad():
        wanted = loaded.model(input_ids=ids, attention_mask=mask).logits[0, :-3]
    handle.remove()
    far = Memory(
        module.name, inputs[0][0, -1:].clone(), torch.ones(1, module.d_out), torch.tensor([1e-3]), "replace_all"
    )
    assert far.match(inputs[0])[0].tolist()[-1] == 0, "its key is the padding's"
    with loaded.at(far), torch.no_grad():
        assert torch.equal(loaded.model(input_ids=ids, attention_mask=mask).logits[0, :-3], wanted)
    near = Memory(module.name, inputs[0][0, :1].clone(), far.values, far.radii, "replace_all")
    with loaded.at(near), torch.no_grad():
        assert not torch.allclose(loaded.model(input_ids=ids, attention_mask=mask).logits[0, :-3], wanted)
