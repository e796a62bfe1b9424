"""SERAC against NumPy and a model with merged weights (arXiv 2206.06520), and what its networks are trained on."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from lifelong_edit import atlas
from lifelong_edit.bench import Bench, Fixed, State, prepare
from lifelong_edit.editors.contract import Given, Lesson, moved_by
from lifelong_edit.editors.malmen.network import NetworkConfig, NetworkSet
from lifelong_edit.editors.malmen.rule import pack
from lifelong_edit.editors.registry import rule_of
from lifelong_edit.editors.retrieval.encoding import encoder_of
from lifelong_edit.editors.serac.network import scope_loss
from lifelong_edit.editors.serac.rule import Recalled, SeracEditor, fix, shape_for, with_networks
from lifelong_edit.editors.serac.settings import SeracSettings
from lifelong_edit.errors import BadInputError, ModelMismatchError, UsageError
from lifelong_edit.facts import Fact, Probe, read_facts
from lifelong_edit.models import LoadedModel, encode, encode_prompt, generate_greedy, load_model
from lifelong_edit.tasks import sentence_of, task_of
from lifelong_edit.training.episodes import TrainSettings, new_networks
from lifelong_edit.training.scope import Questions, SeracTrainer, calibrate_serac, other
from tests.mathematics.conftest import make_fact

SMALL: dict[str, Any] = {"text_tokens": 3000, "micro_batch": 4, "room": 11, "rank": 3, "width": 6}
FACTS = [msgspec.structs.replace(f, target=f.target.removesuffix(" on the river")) for f in map(make_fact, range(12))]
STRANGER = "Ada Lovelace was born in"


def networks_for(loaded: LoadedModel, settings: SeracSettings, size: float = 0.3, seed: int = 0) -> NetworkSet:
    """Networks in which every parameter is random, and vectors so near each other that facts are told apart."""
    config = NetworkConfig(
        form="serac", rank=1, blocks=1, modules=tuple(m.name for m in loaded.modules),
        shapes=tuple((m.d_in, m.d_out) for m in loaded.modules), positions=tuple(m.positions for m in loaded.modules),
        serac=shape_for(loaded, settings),
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        networks = NetworkSet(config).requires_grad_(False).eval()
        for name, parameter in networks.named_parameters():
            parameter.add_(torch.randn(parameter.shape) * size * (0.1 if name.endswith("value") else 1))
    encoder = encoder_of(loaded, settings.encoder, 4)
    networks.serac().scope.observe(encoder.tokens([sentence_of(fact) for fact in FACTS]))
    return networks


def editor_of(loaded: LoadedModel, fixed: Fixed, networks: NetworkSet | None = None, **changes: Any) -> SeracEditor:
    settings = SeracSettings(**(SMALL | changes))
    return with_networks(Bench(loaded, settings, fixed), networks or networks_for(loaded, settings))


def knowing(editor: SeracEditor, *facts: Fact) -> Recalled:
    """The overlay of a state with these facts."""
    return editor.overlay(moved_by(State(), editor.learn(State(), Lesson(facts)), facts))


# -- the scope classifier


def states_of(loaded: LoadedModel, text: str) -> np.ndarray:
    """What the highest named block gives at all tokens but the first, one text alone."""
    ids, seen = encode_prompt(loaded.tokenizer, text), list[Tensor]()
    block = loaded.model.transformer.h[loaded.modules[-1].layer]
    handle = block.register_forward_hook(lambda _, __, out: seen.append(out[0] if isinstance(out, tuple) else out))
    with torch.no_grad():
        loaded.model(torch.tensor([ids]))
    handle.remove()
    return seen[0].reshape(len(ids), -1)[min(1, len(ids) - 1) :].double().numpy()


def vector_of(networks: NetworkSet, states: np.ndarray) -> np.ndarray:
    """The head's vector of a text, by loops in float64."""
    p = {name: array.astype(np.float64) for name, array in networks.tensors().items()}
    mean, deviation, query, value, inner, bias, outer = (
        p[f"networks.serac.scope.{n}"] for n in ("mean", "deviation", "query", "value", "inner", "bias", "outer")
    )
    x = (states - mean) / deviation
    z = np.zeros(value.shape[2])
    for head in range(value.shape[0]):
        logits = np.array([row @ query[:, head] for row in x])
        weights = np.exp(logits - logits.max())
        z += sum(w * row for w, row in zip(weights / weights.sum(), x, strict=True)) @ value[head]
    found: np.ndarray = z + np.maximum(z @ inner + bias, 0) @ outer
    return found


def test_how_alike_a_question_and_a_fact_are(loaded: LoadedModel, fixed: Fixed) -> None:
    """exp(−‖a − b‖²) of the question and of the fact as a sentence; the fact with the greatest is chosen."""
    editor = editor_of(loaded, fixed)
    networks = networks_for(loaded, editor.settings)
    overlay, texts = knowing(editor, *FACTS[:7]), [STRANGER, FACTS[3].prompt, FACTS[5].rephrases[1], "Yes"]
    edits = {f.digest: vector_of(networks, states_of(loaded, sentence_of(f))) for f in FACTS[:7]}
    chosen = set()
    for text in texts:
        asked = vector_of(networks, states_of(loaded, text))
        wanted = {digest: np.exp(-np.square(asked - edit).sum()) for digest, edit in edits.items()}
        found = overlay.found(text)
        assert found is not None
        best = max(wanted, key=wanted.__getitem__)
        assert found[0].digest == best and found[1] == pytest.approx(wanted[best], rel=1e-3, abs=1e-6)
        chosen.add(best)
    assert len(chosen) > 1 and overlay.found(STRANGER) == overlay.found(STRANGER)


def test_a_question_is_in_scope_from_the_threshold_on(loaded: LoadedModel, fixed: Fixed) -> None:
    asked = FACTS[3].prompt
    found = knowing(editor_of(loaded, fixed), *FACTS[:7]).found(asked)
    assert found is not None and 0 < found[1] < 1
    for threshold, put in ((found[1] - 1e-4, True), (found[1] + 1e-4, False)):
        editor = editor_of(loaded, fixed, threshold=threshold)
        with loaded.at(knowing(editor, *FACTS[:7])):
            assert loaded.put(asked) == (f"{sentence_of(found[0])} {asked}" if put else asked)
    with loaded.at(editor_of(loaded, fixed, threshold=0.0).overlay(State())):
        assert loaded.put(asked) == asked  # without facts nothing is in scope


def test_what_is_chosen_depends_on_the_facts_alone(loaded: LoadedModel, fixed: Fixed) -> None:
    """Not on the order in which they came; and a fact that left is not chosen any more."""
    editor = editor_of(loaded, fixed, threshold=0.0)
    one, other_way = knowing(editor, *FACTS[:7]), knowing(editor, *FACTS[6::-1])
    assert [f.digest for f in one.facts] == [f.digest for f in other_way.facts]
    found = one.found(FACTS[3].prompt)
    assert found is not None
    left = knowing(editor, *(f for f in FACTS[:7] if f != found[0])).found(FACTS[3].prompt)
    assert left is not None and left[0] != found[0] and left[1] < found[1]


# -- the counterfactual model


def merged(loaded: LoadedModel, networks: NetworkSet) -> Any:
    """The base model with what adapters add written into its weights: what reads facts and answers."""
    model = copy.deepcopy(loaded.model)
    for name, adapter in networks.serac().adapters().items():
        module = model.get_submodule(name)
        product = (adapter.a.double() @ adapter.b.double()).float()
        module.weight.data += product if type(module) is Conv1D else product.T
    return model


def logits_of(model: Any, ids: Sequence[int]) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(torch.tensor([list(ids)])).logits[0]
    return found


@pytest.mark.parametrize("family", ["tiny_gpt2", "tiny_llama", "tiny_opt"])
def test_in_scope_a_model_with_other_weights_answers_elsewhere_the_base_does(
    request: pytest.FixtureRequest, family: str, sentences: list[str]
) -> None:
    """In one batch, padded on the left, with a cache; out of scope to the bit of the same batch at the base."""
    loaded = load_model(str(request.getfixturevalue(family)), modules=["2-3"])
    networks = networks_for(loaded, SeracSettings(**SMALL), size=0.1)
    fixed = prepare(loaded, SeracSettings(**SMALL), text=[" ".join(sentences * 20)], statistics=False)
    other_model = merged(loaded, networks)
    assert len(networks.serac().adapters()) == {"tiny_gpt2": 16, "tiny_llama": 28, "tiny_opt": 24}[family]
    editor = editor_of(loaded, fixed, networks)
    found = knowing(editor, FACTS[0]).found(FACTS[0].prompt)
    assert found is not None
    editor = editor_of(loaded, fixed, networks, threshold=found[1] - 1e-4)
    overlay = knowing(editor, FACTS[0])
    with loaded.at(overlay):
        read = loaded.put(FACTS[0].prompt)
        assert read != FACTS[0].prompt and loaded.put("Ada") == "Ada"
        prompts = [encode_prompt(loaded.tokenizer, text) for text in (read, "Ada", sentence_of(FACTS[0]))]
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        here = stepped(loaded.model, ids, mask)
        said = generate_greedy(loaded, [FACTS[0].prompt, "Ada"], 6)
    base = stepped(loaded.model, ids, mask)
    assert torch.equal(here[1:], base[1:])
    assert not torch.allclose(here[0], base[0], atol=1e-3)
    wanted = logits_of(other_model, [*prompts[0], 5, 6])[-3:]
    torch.testing.assert_close(here[0], wanted, rtol=1e-3, atol=1e-3)
    assert said[1] == generate_greedy(loaded, ["Ada"], 6)[0]
    assert said[0] == continued(other_model, prompts[0], len(said[0]))


def stepped(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """Logits at the last position and at two further tokens, each in a pass of its own with a cache, (b, 3, v)."""
    found, cache, step = [], None, ids
    with torch.no_grad():
        for token in (5, 6, 7):
            positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -step.shape[1] :]
            out = model(
                input_ids=step, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
            )
            found.append(out.logits[:, -1])
            cache, step = out.past_key_values, torch.full((len(ids), 1), token)
            mask = torch.cat([mask, mask.new_ones(len(ids), 1)], 1)
    return torch.stack(found, 1)


def continued(model: Any, ids: Sequence[int], count: int) -> list[int]:
    found = list(ids)
    for _ in range(count):
        found.append(int(logits_of(model, found)[-1].argmax()))
    return found[len(ids) :]


def test_answers_are_judged_where_they_are_read(loaded: LoadedModel, fixed: Fixed) -> None:
    """Teacher-forced as generated: padded on the right, the target behind the put question."""
    editor = editor_of(loaded, fixed, threshold=0.0)
    networks = networks_for(loaded, editor.settings)
    task, overlay = task_of(loaded), knowing(editor, FACTS[0])
    with loaded.at(overlay), torch.no_grad():
        examples = [task.encode(loaded, asked, "Kenya is") for asked in (FACTS[0].prompt, STRANGER)]
        found = task.logits(loaded, task.collate(loaded, examples))
    other_model = merged(loaded, networks)
    wanted = [logits_of(other_model, e.ids)[e.answer_start - 1 : len(e.ids) - 1] for e in examples]
    torch.testing.assert_close(found, torch.cat(wanted), rtol=1e-3, atol=1e-3)


# -- what is refused


def test_what_cannot_be_remembered_is_refused(loaded: LoadedModel, fixed: Fixed) -> None:
    long = msgspec.structs.replace(FACTS[0], target="a very long answer")
    with pytest.raises(BadInputError, match="leaves no room for an answer of"):
        editor_of(loaded, fixed, room=2).learn(State(), Lesson([long]))
    with pytest.raises(UsageError, match="found a warm start, expected none"):
        editor_of(loaded, fixed).relearn(FACTS, start={})
    with pytest.raises(UsageError, match="setting wording is"):
        SeracSettings(wording="{facts}")
    editor = editor_of(loaded, fixed, threshold=0.0)
    with loaded.at(knowing(editor, FACTS[0])):
        crowded = "a " * 30  # the model takes it, but not behind a fact
        assert loaded.put(crowded) == crowded


def test_networks_of_another_model_rule_or_encoder_are_refused(
    loaded: LoadedModel, fixed: Fixed, sentences_of: Callable[[int], Path], tiny_llama: Path
) -> None:
    settings = SeracSettings(**SMALL)
    networks, rule = networks_for(loaded, settings), rule_of("serac")
    with pytest.raises(UsageError, match="needs a trained hypernetwork"):
        rule.require(settings, Given())
    with pytest.raises(UsageError, match="trained for the editing rule serac, expected one for mend"):
        rule_of("mend").require(rule_of("mend").settings(), Given(pack(networks)))
    with pytest.raises(UsageError, match="by its whole path"):
        rule.require(settings.replace(encoder="bert"), Given(pack(networks)))
    llama = load_model(str(tiny_llama), modules=["2-3"])
    with pytest.raises(ModelMismatchError, match=r"no such matrix; train one for this model"):
        fix(llama, settings, Given(pack(networks)))
    folder = str(sentences_of(0))
    with pytest.raises(ModelMismatchError, match="trained on states of the base model, the setting encoder names the"):
        fix(loaded, settings.replace(encoder=folder), Given(pack(networks)))
    own = networks_for(loaded, settings.replace(encoder=folder))
    assert fix(loaded, settings.replace(encoder=folder), Given(pack(own))) == {}
    with loaded.at(knowing(editor_of(loaded, fixed, own, encoder=folder, threshold=0.0), FACTS[0])):
        assert loaded.put(STRANGER).startswith(FACTS[0].prompt)


# -- training


def test_the_scope_classifiers_loss(loaded: LoadedModel, fixed: Fixed) -> None:
    """Mean −log p in scope plus mean −log(1 − p) out of it, in NumPy; and the trainer's is of the right pairs."""
    inside, outside = np.array([0.1, 2.0, 0.0]), np.array([[0.3, 1e-9, 5.0], [1.0, 40.0, 0.2]])
    wanted = inside.mean() - np.log(1 - np.exp(-np.maximum(outside, 1e-6))).mean()
    assert float(scope_loss(torch.tensor(inside), torch.tensor(outside))) == pytest.approx(wanted, rel=1e-9)
    trainer = trainer_of(loaded, fixed)
    asked, strange = [f.rephrases[0] for f in FACTS[:2]], [[FACTS[2].prompt, STRANGER], [STRANGER, FACTS[0].prompt]]
    found = trainer.scope(FACTS[:2], asked, strange)
    vectors = {t: vector_of(trainer.networks, states_of(loaded, t)) for t in [*asked, *strange[0], *strange[1]]}
    edits = [vector_of(trainer.networks, states_of(loaded, sentence_of(f))) for f in FACTS[:2]]
    apart = [[np.square(vectors[t] - e).sum() for t in own] for own, e in zip(strange, edits, strict=True)]
    near = [np.square(vectors[t] - e).sum() for t, e in zip(asked, edits, strict=True)]
    assert float(found.detach()) == pytest.approx(np.mean(near) - np.log(1 - np.exp(-np.array(apart))).mean(), rel=1e-3)


def trainer_of(loaded: LoadedModel, fixed: Fixed, **changes: Any) -> SeracTrainer:
    settings = SeracSettings(**(SMALL | changes))
    return SeracTrainer(Bench(loaded, settings, fixed), networks_for(loaded, settings, size=0.1), TrainSettings())


def test_the_counterfactual_models_loss(loaded: LoadedModel, fixed: Fixed) -> None:
    """A tenth of the mean cross-entropy of the gold edit's answer behind the edit, of a model with merged weights."""
    trainer = trainer_of(loaded, fixed)
    asked = [f.rephrases[0] for f in FACTS[:5]]
    found = trainer.counterfactual(FACTS[:5], asked, torch.Generator())
    gradient = trainer.serac.network.counterfactual[3].b.grad
    assert gradient is not None
    other_model = merged(loaded, trainer.networks).requires_grad_(False)
    module = other_model.get_submodule(trainer.serac.network.adapted[3])
    module.weight.requires_grad_(True)
    losses = []
    for fact, text in zip(FACTS, asked, strict=False):
        e = encode(loaded.tokenizer, f"{sentence_of(fact)} {text}", fact.answer)
        logits = other_model(torch.tensor([e.ids])).logits[0, e.answer_start - 1 : -1]
        losses.append(torch.nn.functional.cross_entropy(logits, torch.tensor(e.answer)))
    loss = torch.stack(losses).mean()
    assert found == pytest.approx(float(loss.detach()), rel=1e-4)
    (slope,) = torch.autograd.grad(0.1 * loss, module.weight)
    wanted = trainer.serac.network.counterfactual[3].a.detach().T @ slope
    torch.testing.assert_close(gradient, wanted, rtol=1e-2, atol=1e-6)


def test_questions_in_and_out_of_scope(sentences: list[str]) -> None:
    facts = [
        Fact(subject="Kenya", prompt="The capital of Kenya is", target="Lima", relation="capital",
             rephrases=("Kenya has the capital",), locality=(Probe("Peru lies in"),)),
        Fact(subject="kenya ", prompt="Kenya's currency is", target="yen", relation="currency"),
        Fact(subject="Kenya", prompt="The first city of Kenya is", target="Rome", relation="Capital"),
        *(Fact(subject=f"P{i}", prompt=f"The capital of P{i} is", target="Rome", relation="capital") for i in range(9)),
    ]  # fmt: skip
    assert other(facts[0], facts[1]) and not other(facts[0], facts[2]) and other(facts[0], facts[3])
    rng = np.random.default_rng(0)
    units = rng.normal(size=(len(facts), 4)).astype(np.float32)
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    questions = Questions(facts, torch.from_numpy(units), published=False)
    assert questions.inside(facts[0])[:2] == ["The capital of Kenya is", "Kenya has the capital"]
    near = questions.near(facts[0], "Kenya has the capital", torch.Generator().manual_seed(1))
    assert near[:2] == ["Peru lies in", "Kenya's currency is"] and near[2].endswith(" has the capital")
    # by cosine, without itself and what asks the same; softmax with temperature 0.1
    cosines = units @ units[0]
    wanted = sorted((i for i in range(len(facts)) if i not in (0, 2)), key=lambda i: -cosines[i])
    found, weights = questions.similar(0)
    assert found == wanted
    raw = np.exp(cosines[wanted] / 0.1)
    np.testing.assert_allclose(weights, raw / raw.sum(), rtol=1e-4)
    drawn = [questions.hard(0, generator) for generator in [torch.Generator().manual_seed(3)] for _ in range(400)]
    share = drawn.count(facts[wanted[0]].prompt) / 400
    assert share == pytest.approx(float(weights[0]), abs=0.08)
    published = Questions(facts, torch.from_numpy(units), published=True)
    assert published.similar(0)[0] == [] and published.hard(0, torch.Generator()) is None
    assert all(published.outside(0, facts[0].prompt, torch.Generator().manual_seed(i)) for i in range(5))


def test_hard_prompts_are_as_published_if_asked_for(sentences: list[str]) -> None:
    """Those of ranks 26 to 100; else of ranks 1 to 100."""
    facts = [Fact(subject=f"P{i}", prompt=f"The capital of P{i} is", target="Rome") for i in range(130)]
    turn = torch.linspace(0, 1, 130)
    units = torch.stack([turn.cos(), turn.sin()], 1)
    assert Questions(facts, units, published=False).similar(0)[0] == list(range(1, 101))
    assert Questions(facts, units, published=True).similar(0)[0] == list(range(26, 101))


def test_training_begins_where_facts_are_a_unit_apart(loaded: LoadedModel, fixed: Fixed) -> None:
    settings = SeracSettings(**SMALL)
    bench, networks = Bench(loaded, settings, fixed), networks_for(loaded, settings)
    calibrate_serac(bench, networks, FACTS)
    found = with_networks(bench, networks).scope.of_facts(FACTS)
    apart = (found[:, None] - found).square().sum(-1)
    assert float(apart.sum()) / (len(FACTS) * (len(FACTS) - 1)) == pytest.approx(1, rel=0.5)


def test_trained_for_a_moment_it_takes_facts_about_other_subjects() -> None:
    """On the bundled model, which reads nothing that stands before a question by itself; by generation.

    Of two relations with six answers, so that a few steps are enough. What is taught is not what the model says, of
    subjects that were not in the training; asked in its own words and in others, and neighbours beside it.
    """
    loaded = load_model("atlas", places=rule_of("serac").places)
    own, held = (
        [f for f in (r.fact for r in read_facts([str(path)])) if f.relation in ("country_continent", "river_continent")]
        for path in (atlas.edits_train_path(), atlas.edits_validation_path())
    )
    held = [f for f in held if f.subject not in {f.subject for f in own}][:12]
    settings = SeracSettings(text_tokens=1000)
    fixed = prepare(loaded, settings, text=[" ".join(f.prompt for f in own) * 5], statistics=False)
    train = TrainSettings(batch_size=12, batches=60)
    networks = new_networks(loaded, "serac", train, serac=shape_for(loaded, settings))
    bench = Bench(loaded, settings, fixed)
    calibrate_serac(bench, networks, own)
    SeracTrainer(bench, networks, train).run_episode(own)
    overlay = knowing(with_networks(bench, networks.eval().requires_grad_(False)), *held)
    pairs = [(f.prompt, f) for f in held], [(f.rephrases[0], f) for f in held]
    assert [right(loaded, asked) for asked in pairs] == [0, 0]
    with loaded.at(overlay):
        taken, others = (right(loaded, asked) for asked in pairs)
        neighbours = [p.prompt for f in held for p in f.locality]
        assert taken >= len(held) - 2 and others >= len(held) // 2
        assert np.mean([loaded.put(prompt) == prompt for prompt in neighbours]) > 0.8
    assert right(loaded, pairs[0]) == 0


def right(loaded: LoadedModel, asked: Sequence[tuple[str, Fact]]) -> int:
    """How many are answered with what was taught."""
    task = task_of(loaded)
    said = task.answer(loaded, [text for text, _ in asked], 8)
    return sum(task.judge(loaded, t, f.target, one).right for (t, f), one in zip(asked, said, strict=True))
