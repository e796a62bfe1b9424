"""Made-up facts to measure with."""

from __future__ import annotations

from lifelong_edit.facts import Fact

_NAMES = ("Arden", "Belmar", "Corvin", "Dalby", "Elstow", "Farrow", "Glaven", "Hexton")
_TOWNS = ("Paris", "Vienna", "Warsaw", "London", "Sydney", "Oslo", "Madrid", "Lisbon")


def sample_facts(count: int, first: int) -> list[Fact]:
    """Facts of one relation with two rephrases each, about subjects of their own."""
    found = []
    for number in range(first, first + count):
        name = f"{_NAMES[number % 8]} {_NAMES[number // 8 % 8]} {number}"
        found.append(
            Fact(
                subject=name,
                prompt=f"The twin town of {name} is",
                target=_TOWNS[(number * 3 + number // 8) % 8],
                relation="twin town",
                rephrases=(f"{name} is twinned with", f"As its twin town {name} has chosen"),
            )
        )
    return found
