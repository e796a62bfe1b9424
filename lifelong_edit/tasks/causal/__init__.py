"""Decoders: prompts that are continued."""

from __future__ import annotations
