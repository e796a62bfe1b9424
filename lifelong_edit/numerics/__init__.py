"""Arrays in, arrays out: solves, grams, fitted curves. Knows no model, no fact and no store."""

from __future__ import annotations
