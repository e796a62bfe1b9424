"""Masked language models: a text with a gap in, what fills the gap out."""

from __future__ import annotations
