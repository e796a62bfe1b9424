"""The page that compares rules says what was measured, and nothing else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from benchmarks import rules_page
from benchmarks.common import RESULTS


def test_the_page_is_what_the_figures_make() -> None:
    assert rules_page.PAGE.read_text(encoding="utf-8") == rules_page.page()


def test_all_that_was_measured_is_on_the_page_with_its_own_figures(tmp_path: Path) -> None:
    lives = sorted(f for life in (rules_page.LIVES, rules_page.LONG) for f in RESULTS.glob(f"rules-*-{life}.json"))
    real = sorted(RESULTS.glob(f"real-{rules_page.MODEL}-*-{rules_page.REAL}.json"))
    assert lives and real
    for file in (*lives, *real):
        shutil.copy(file, tmp_path)
    assert rules_page.page(tmp_path) == rules_page.page()
    for file in lives:
        told = json.loads(file.read_text(encoding="utf-8"))
        told["results"]["figures"]["locality"]["generated"] = 0.1234
        (tmp_path / file.name).write_text(json.dumps(told), encoding="utf-8")
    assert rules_page.page(tmp_path).count(" .123 ") == len(lives)


def test_what_is_said_stands_below_its_table() -> None:
    assert all(rules_page.SAID.values()), "say in SAID what the figures say"
