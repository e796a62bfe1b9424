"""A state on a model that answers others: one that somebody holds already, or a server for trying it."""

from __future__ import annotations

BASE = "base"
"""What the untouched model is called."""
