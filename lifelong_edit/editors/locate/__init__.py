"""Locate-then-edit: one search for what a hidden state should be, one spread over layers, several ways to solve."""

from __future__ import annotations
