"""Rows of a solve, and what the model says of them: keys, gradients, what must hold still."""

from __future__ import annotations
