"""Encoders with a head that gives a text, or a pair of texts, a label."""

from __future__ import annotations
