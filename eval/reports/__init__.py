"""What is made of measurements: evaluations, matrices, pages. Reads timelines."""

from __future__ import annotations
