"""docs/training.md says what `train --choose` may try for each rule, and every way of choosing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lifelong_edit.editors.registry import RULES, rule_of
from lifelong_edit.training.choosing import Choosing

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "training.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [name for name in RULES if rule_of(name).tries and not rule_of(name).tries.beside])
def test_what_may_be_tried_for_a_rule_stands_in_its_row(name: str) -> None:
    tries = rule_of(name).tries
    (row,) = re.findall(rf"^\| [^|]*`{name}`[^|]* \| ([^|]+) \| ([^|]*) ?\|$", PAGE, re.MULTILINE)
    assert re.findall(r"`(\w+)`", row[0]) == list(tries.grid)
    shares = f"{100 * tries.depths[0]:.0f} to {100 * tries.depths[-1]:.0f} %" if tries.depths else ""
    assert shares in row[1] or row[1].strip() == "the same"


@pytest.mark.parametrize("name", Choosing.__struct_fields__)
def test_a_way_of_choosing_is_documented(name: str) -> None:
    table = PAGE.partition("`--choosing NAME=VALUE`:")[2].partition("\n## ")[0]
    assert re.search(rf"^\|[^|]*`{name}`[^|]*\|", table, re.MULTILINE)
