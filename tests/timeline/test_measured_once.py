"""What `init` measures on a model is kept per user where it is public, and a second store has it at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from lifelong_edit.facts import general_prompts
from lifelong_edit.timeline import Timeline
from tests.timeline.conftest import SETTINGS


@pytest.mark.parametrize("own", [False, True], ids=["prompts of the program", "prompts of somebody"])
def test_a_second_store_begins_as_the_first(
    tiny_gpt2: Path, sentences: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: bool
) -> None:
    """The same to the bit, measured or read; prompts that did not come with the program are kept nowhere."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    prompts = [*general_prompts()[:12], *(["The secret of Warsaw is"] if own else [])]
    fixed, said = [], list[list[str]]()
    for number in range(2):
        said.append([])
        making = {
            "model": str(tiny_gpt2),
            "settings": SETTINGS,
            "preserve": prompts,
            "text": [" ".join(sentences * 20)],
        }
        with Timeline.create(tmp_path / str(number), **making, say=said[-1].append) as timeline:
            fixed.append(timeline.show(0).fixed)
    assert fixed[0] == fixed[1]
    kept = [path.parent.name for path in (tmp_path / "cache").rglob("*.safetensors")]
    assert sorted(kept) == (["text"] if own else ["prompts", "text"])
