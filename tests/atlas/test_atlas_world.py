"""The world of atlas: well-formed tables, sound phrasings, withheld thirds, and prose without leaks."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from lifelong_edit.atlas.corpus import grammar, paragraphs, plain_sentences, tables
from lifelong_edit.atlas.phrasings import RELATIONS, render
from lifelong_edit.atlas.world_tables import (
    WORLD,
    held_pairs,
    read_table,
    trained_pairs,
    untrained_pairs,
    withheld_pairs,
    world_facts,
)


def test_tables_have_no_empty_field_and_name_every_row_once() -> None:
    for relation in RELATIONS:
        rows = read_table(WORLD / f"{relation.table}.tsv")
        assert relation.column in rows[0]
        assert all(cell and cell == cell.strip() for row in rows for cell in row.values()), relation.table
        names = Counter(row["name"] for row in rows)
        assert max(names.values()) == 1, names.most_common(1)


def test_a_row_of_the_wrong_width_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.tsv").write_text("name\tcity\nBenfica\tLisbon\nPorto\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"bad\.tsv:3: 1 fields, but the header names 2"):
        read_table(tmp_path / "bad.tsv")


def test_one_object_per_subject_and_relation_and_thousands_of_facts() -> None:
    facts = world_facts()
    assert len(facts) >= 2300
    assert len({(fact.subject, fact.relation) for fact in facts}) == len(facts)
    assert len({fact.relation for fact in facts}) == len(RELATIONS) >= 15


def test_every_relation_has_eight_phrasings_and_two_more_all_different() -> None:
    for relation in RELATIONS:
        every = relation.trained + relation.untrained
        assert len(relation.trained) >= 8
        assert len(relation.untrained) == 2
        assert len(set(every)) == len(every)
        assert all(phrasing.count("{s}") == 1 and phrasing == phrasing.strip() for phrasing in every)


def test_every_prompt_names_its_subject_as_written_and_begins_like_a_sentence() -> None:
    for fact in world_facts():
        for prompt in fact.prompts + fact.untrained_prompts:
            assert fact.subject in prompt
            assert prompt[0].isupper() or prompt.startswith(fact.subject), prompt


def test_no_prompt_asks_for_two_facts() -> None:
    prompts = Counter(prompt for fact in world_facts() for prompt in fact.prompts + fact.untrained_prompts)
    assert max(prompts.values()) == 1


def test_articles_are_capital_only_at_the_front() -> None:
    assert render("{s} flows into the", "Rhine", True) == "The Rhine flows into the"
    assert render("The mouth of {s} is at the", "Rhine", True) == "The mouth of the Rhine is at the"
    assert render("{s} is a country in", "France", False) == "France is a country in"


def test_each_phrasing_is_withheld_from_a_third_of_the_subjects() -> None:
    withheld = Counter((name, index) for name, _, index in withheld_pairs())
    subjects = Counter(fact.relation for fact in world_facts())
    for relation in RELATIONS:
        for index in range(len(relation.trained)):
            assert abs(withheld[relation.name, index] - subjects[relation.name] / 3) < 1
    per_fact = Counter((name, subject) for name, subject, _ in withheld_pairs())
    assert set(per_fact.values()) <= {2, 3}
    assert len(per_fact) == len(world_facts())


def test_trained_withheld_and_untrained_prompts_are_apart() -> None:
    trained, held, untrained = (
        {prompt for _, prompt in pairs()} for pairs in (trained_pairs, held_pairs, untrained_pairs)
    )
    assert not trained & held
    assert not untrained & (trained | held)
    assert len(trained) + len(held) == 8 * len(world_facts())


def test_prose_says_nothing_in_the_words_of_a_withheld_or_untrained_prompt() -> None:
    text = "\n".join(paragraphs("train", 300_000))
    leaks = [prompt for pairs in (held_pairs(), untrained_pairs()) for _, prompt in pairs if f"{prompt} " in text]
    assert leaks == []


def test_every_table_of_the_world_has_sentences_and_every_slot_is_a_column() -> None:
    assert set(tables()) == {relation.table for relation in RELATIONS}
    for table in tables():
        columns = set(read_table(WORLD / f"{table}.tsv")[0])
        slots = {part.split("}")[0] for text in grammar()[table] for part in text.split("{")[1:]}
        assert slots <= columns


def test_prose_is_seeded_and_its_two_parts_share_no_paragraph_and_no_plain_sentence() -> None:
    assert paragraphs("train", 20_000) == paragraphs("train", 20_000)
    assert paragraphs("train", 20_000, seed=1) != paragraphs("train", 20_000)
    assert not set(paragraphs("train", 60_000)) & set(paragraphs("heldout", 60_000))
    assert not set(plain_sentences("train")) & set(plain_sentences("heldout"))
    assert min(len(plain_sentences("train")), len(plain_sentences("heldout"))) >= 20
    assert not any(sign in text for text in paragraphs("train", 60_000) for sign in "<>{}")
