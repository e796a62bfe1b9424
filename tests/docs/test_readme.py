"""README is short: one sitting, not a manual. What does not fit there has a page in docs/."""

from __future__ import annotations

from pathlib import Path

README = Path(__file__).resolve().parents[2] / "README.md"
MOST_BYTES = 10 * 1024


def test_readme_is_short() -> None:
    size = README.stat().st_size
    assert size <= MOST_BYTES, f"README.md has {size} bytes, more than {MOST_BYTES}; move details to a page in docs/"
