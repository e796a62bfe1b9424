"""UltraEdit (arXiv 2505.14679): a running normaliser in the place of a network."""

from __future__ import annotations
