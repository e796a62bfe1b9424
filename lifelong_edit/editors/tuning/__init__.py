"""What the fine-tuning rules have in common: rows, gradients of weights, Adam, epochs."""

from __future__ import annotations
