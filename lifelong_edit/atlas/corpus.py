"""Prose about the world for atlas to read: paragraphs grown from a small grammar, the tables and plain sentences.

The text is there so that perplexity means something and so that the gram of text keys (C0) has text to come from. A
share of the plain sentences and a stream of draws of their own are kept for the held-out text.
"""

from __future__ import annotations

import random
import re
from functools import cache
from typing import Literal

from lifelong_edit.atlas.world_tables import UNKNOWN, WORLD, draw, read_table

Part = Literal["train", "heldout"]
HELD_SENTENCES = 6  # one plain sentence in six is in the held-out text only
_LIST = re.compile(r"<([A-Za-z]+)>")
_CELL = re.compile(r"{(\w+)}")


@cache
def grammar() -> dict[str, tuple[str, ...]]:
    """The lists of ``world/grammar.txt`` by name."""
    lists: dict[str, list[str]] = {}
    name = ""
    for line in (WORLD / "grammar.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("@"):
            name = line[1:]
            lists[name] = []
        elif line and not line.startswith("#"):
            lists[name].append(line)
    return {key: tuple(values) for key, values in lists.items()}


@cache
def plain_sentences(part: Part) -> tuple[str, ...]:
    """The hand-written sentences of one part; the two parts share none."""
    lines = (WORLD / "prose.txt").read_text(encoding="utf-8").splitlines()
    return tuple(line for line in lines if (draw("prose", line) % HELD_SENTENCES == 0) == (part == "heldout"))


@cache
def _rows(table: str) -> tuple[dict[str, str], ...]:
    return tuple(read_table(WORLD / f"{table}.tsv"))


def _fill(template: str, cells: dict[str, str], rng: random.Random) -> str:
    lists = grammar()
    words = _LIST.sub(lambda match: rng.choice(lists[match[1]]), template)
    sentence = _CELL.sub(lambda match: cells[match[1]], words)
    return sentence[0].upper() + sentence[1:] if template[0] == "{" and sentence.startswith("the ") else sentence


def _usable(templates: tuple[str, ...], cells: dict[str, str]) -> list[str]:
    return [t for t in templates if all(cells[slot] != UNKNOWN for slot in _CELL.findall(t))]


def _about(table: str, rng: random.Random, most: int) -> list[str]:
    """Up to ``most`` different sentences about one row of a table."""
    cells = rng.choice(_rows(table))
    templates = _usable(grammar()[table], cells)
    return [_fill(t, cells, rng) for t in rng.sample(templates, min(len(templates), rng.randint(1, most)))]


def _pair(table: str, rng: random.Random) -> list[str]:
    """One sentence that sets two rows of a table side by side, if the table has any such templates."""
    first, second = rng.sample(_rows(table), 2)
    cells = first | {f"{key}2": value for key, value in second.items()}
    templates = _usable(grammar().get(f"{table}_pair", ()), cells)
    return [_fill(rng.choice(templates), cells, rng)] if templates else []


def tables() -> tuple[str, ...]:
    """The names of the world's tables that have sentences, in the order of the grammar."""
    return tuple(name for name in grammar() if (WORLD / f"{name}.tsv").exists())


def paragraph(rng: random.Random, part: Part) -> str:
    """One paragraph of three to nine sentences: a subject or two, a comparison, a scene, a plain sentence."""
    sentences: list[str] = []
    for _ in range(rng.randint(1, 2)):
        # Countries have by far the most to tell, so they come up more often than the other tables.
        table = "countries" if rng.random() < 0.2 else rng.choice(tables())
        sentences += _about(table, rng, most=3)
        if rng.random() < 0.4:
            sentences += _pair(table, rng)
    scenes = [_fill(rng.choice(grammar()["scene"]), {}, rng) for _ in range(rng.randint(1, 2))]
    if rng.random() < 0.5:
        scenes.append(rng.choice(plain_sentences(part)))
    for scene in scenes:
        sentences.insert(rng.randint(0, len(sentences)), scene)
    return " ".join(sentences)


def paragraphs(part: Part, size: int, seed: int = 0) -> list[str]:
    """Paragraphs of one part, at least ``size`` bytes in all; a longer draw begins with the shorter one."""
    rng = random.Random(draw("corpus", part, seed))
    made: list[str] = []
    total = 0
    while total < size:
        made.append(paragraph(rng, part))
        total += len(made[-1].encode()) + 1
    return made
