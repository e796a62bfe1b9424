"""Model and facts in, numbers out: what is measured."""

from __future__ import annotations
