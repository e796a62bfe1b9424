"""What is learned once for a model: networks, settings, scorers."""

from __future__ import annotations
