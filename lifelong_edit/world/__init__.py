"""One process or many: work is shared out by whole units, so that no result depends on how many processes there are."""

from __future__ import annotations

from lifelong_edit.world.alone import ALONE, World

__all__ = ["ALONE", "World"]
