"""The edited model for everyone else."""

from __future__ import annotations
