"""Encoder-decoders: a question is read whole, and its answer written from the beginning."""

from __future__ import annotations
