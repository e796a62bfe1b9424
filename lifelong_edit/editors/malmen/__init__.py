"""MALMEN (arXiv 2311.04661): the hypernetwork and the rule that asks with it."""

from __future__ import annotations
