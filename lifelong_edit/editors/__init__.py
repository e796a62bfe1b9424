"""Editing rules: model and facts in, changes out. A rule is a folder and a line in the registry."""

from __future__ import annotations
