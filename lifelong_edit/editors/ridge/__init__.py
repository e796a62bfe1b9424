"""The solve of this project: rows, preservation, one ridge regression per matrix; and its rule without a network."""

from __future__ import annotations
