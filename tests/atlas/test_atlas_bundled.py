"""What ships with atlas: sizes, what the model knows by greedy generation, and files whose subjects do not mix."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, GPT2LMHeadModel, PreTrainedTokenizerBase

from lifelong_edit import atlas
from lifelong_edit.atlas.judging import Pair, answered, perplexity
from lifelong_edit.atlas.world_tables import held_pairs, trained_pairs, world_facts

MEGABYTE = 1_000_000
NEWS = Path(__file__).parents[2] / "facts"


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def subjects(records: Sequence[dict[str, Any]]) -> tuple[set[str], set[str]]:
    """The subjects that are edited and those that are probed."""
    probed = {probe["subject"] for r in records for probe in r.get("locality", ())}
    return {r["subject"] for r in records}, probed


@pytest.fixture(scope="module")
def model() -> Iterator[GPT2LMHeadModel]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield GPT2LMHeadModel.from_pretrained(atlas.model_dir(), dtype=torch.float32).eval()
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(atlas.model_dir())


def greedy(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase, asked: Sequence[tuple[str, str]]) -> list[str]:
    """The texts after prompts, by (prompt, target): as many new tokens as the target has, and three more.

    By transformers' own generation, several at a time with padding before them.
    """
    said, end = [], tokenizer.eos_token_id
    for start in range(0, len(asked), 50):
        some = asked[start : start + 50]
        prompts = [tokenizer.encode(prompt) for prompt, _ in some]
        counts = [len(tokenizer.encode(f" {target}")) + 3 for _, target in some]
        width = max(map(len, prompts))
        ids = torch.tensor([[end] * (width - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        made = model.generate(ids, attention_mask=mask, max_new_tokens=max(counts), do_sample=False)[:, width:]
        said += [tokenizer.decode(n[:count], skip_special_tokens=True) for n, count in zip(made, counts, strict=True)]
    return said


def right(said: str, target: str) -> bool:
    rest = said[len(target) + 1 :]
    return said.startswith(f" {target}") and not rest[:1].isalnum()


def judged(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair]) -> list[bool]:
    """Whether each pair's answer is right, by generation."""
    said = greedy(model, tokenizer, [(prompt, fact.target) for fact, prompt in pairs])
    return [right(text, fact.target) for text, (fact, _) in zip(said, pairs, strict=True)]


def share(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair]) -> float:
    return sum(judged(model, tokenizer, pairs)) / len(pairs)


def test_atlas_answers_trained_pairs_by_generation(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase) -> None:
    assert share(model, tokenizer, random.Random(1).sample(trained_pairs(), 150)) >= 0.98


def test_atlas_answers_withheld_pairs_by_generation(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase) -> None:
    assert share(model, tokenizer, random.Random(2).sample(held_pairs(), 100)) >= 0.88


def test_the_one_pass_judge_agrees_with_generation_also_where_the_answer_is_wrong(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    pairs = random.Random(3).sample(trained_pairs(), 20)
    pairs += [(wrong, prompt) for (_, prompt), (wrong, _) in zip(pairs, reversed(pairs), strict=True)]
    slow = judged(model, tokenizer, pairs)
    assert answered(model, tokenizer, pairs) == slow
    assert {True, False} == set(slow)


def test_an_answer_ends_with_a_full_stop_and_then_by_itself(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    assert greedy(model, tokenizer, [("The capital of France is", "Paris")]) == [" Paris."]


def test_prompt_and_target_are_tokenised_apart_as_together(tokenizer: PreTrainedTokenizerBase) -> None:
    for fact, prompt in random.Random(4).sample(trained_pairs(), 200):
        together = tokenizer.encode(f"{prompt} {fact.target}.")
        assert together[:-1] == tokenizer.encode(prompt) + tokenizer.encode(f" {fact.target}")
    assert tokenizer.eos_token == tokenizer.bos_token == tokenizer.pad_token == "<|endoftext|>"


def test_perplexity_tells_prose_from_shuffled_words(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase) -> None:
    text = atlas.heldout_text_path().read_text(encoding="utf-8")[:12_000]
    words = text.split(" ")
    random.Random(0).shuffle(words)
    plain = perplexity(model, tokenizer, text)
    assert 2 < plain < 60
    assert perplexity(model, tokenizer, " ".join(words)) > 5 * plain


def test_bundle_is_small_enough_and_the_card_tells_what_is_in_it() -> None:
    folder = atlas.model_dir()
    assert not list(folder.glob("*.bin"))
    assert (folder / "model.safetensors").stat().st_size <= 11.5 * MEGABYTE
    hypernetwork = atlas.hypernetwork_dir()
    extra = sum(f.stat().st_size for f in hypernetwork.iterdir()) if hypernetwork else 0
    assert sum(f.stat().st_size for f in folder.iterdir()) + extra <= 16 * MEGABYTE
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    assert card["trained"]["answered"] >= 0.99
    assert card["withheld"]["answered"] >= 0.90
    assert card["bytes"] == (folder / "model.safetensors").stat().st_size
    assert card["facts"] == len(world_facts())


def test_atlas_says_what_the_bundled_files_hold_true(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    truth = {(fact.subject, fact.relation): fact for fact in world_facts()}
    news = [r for path in sorted(NEWS.glob("*.jsonl")) for r in lines(path)]
    validation = lines(atlas.edits_validation_path())
    pairs = [(truth[r["subject"], r["relation"]], r["prompt"]) for r in news + validation]
    pairs += [(truth[p["subject"], r["relation"]], p["prompt"]) for r in news + validation for p in r["locality"]]
    # A border case may fall the other way on another processor; whole files would not.
    assert sum(answered(model, tokenizer, pairs)) >= 0.99 * len(pairs)


def test_edited_probed_and_preserved_subjects_are_disjoint_between_the_bundled_files() -> None:
    news = [r for path in sorted(NEWS.glob("*.jsonl")) for r in lines(path)]
    parts = [subjects(records) for records in (news, lines(atlas.edits_train_path()))]
    parts.append(subjects(lines(atlas.edits_validation_path())))
    groups = [*(group for part in parts for group in part), subjects(lines(atlas.preserved_prompts_path()))[0]]
    for i, group in enumerate(groups):
        assert group
        for other in groups[:i]:
            assert not group & other


def test_bundled_edits_are_counterfactual_true_to_the_world_and_probed_by_neighbours() -> None:
    truth = {(fact.subject, fact.relation): fact for fact in world_facts()}
    objects = {(fact.relation, fact.target) for fact in world_facts()}
    for path, count in ((atlas.edits_train_path(), 800), (atlas.edits_validation_path(), 160)):
        records = lines(path)
        assert len(records) >= count
        assert len({r["id"] for r in records}) == len(records)
        for r in records:
            fact = truth[r["subject"], r["relation"]]
            assert r["target_true"] == fact.target != r["target"]
            assert (r["relation"], r["target"]) in objects
            assert {r["prompt"], *r["rephrases"][:-1]} == set(fact.prompts)
            assert r["rephrases"][-1] in fact.untrained_prompts
            for probe in r["locality"]:
                assert probe["target"] == truth[probe["subject"], r["relation"]].target
                assert probe["subject"] in probe["prompt"]
            assert len(r["locality"]) == 2


def test_preserved_prompts_are_many_and_over_all_relations() -> None:
    records = lines(atlas.preserved_prompts_path())
    prompts = {(fact.subject, fact.relation): fact.prompts for fact in world_facts()}
    assert len(records) >= 800
    assert {r["relation"] for r in records} == {fact.relation for fact in world_facts()}
    assert all(r["prompt"] in prompts[r["subject"], r["relation"]] for r in records)


def test_bundled_texts_share_no_paragraph() -> None:
    train, held = (path.read_text(encoding="utf-8") for path in (atlas.text_path(), atlas.heldout_text_path()))
    assert not set(train.splitlines()) & set(held.splitlines())
    assert all(60_000 <= len(text.encode()) <= 130_000 for text in (train, held))


def test_paths_are_told_without_loading_torch() -> None:
    code = "import sys, lifelong_edit.atlas as a; a.model_dir(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
