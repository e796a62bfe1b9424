"""The settings of the codebook."""

from __future__ import annotations

from typing import Literal

from lifelong_edit.settings import AtLeastOne, Count, Positive, StoreSettings

Replacement = Literal["replace_last", "replace_all", "replace_prompt"]


class GraceSettings(StoreSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of `grace`. Of several modules the lowest one has the codebook; unless one is named, that of layer 27 of 32."""

    editor: str = "grace"
    """The editing rule."""
    radius: Positive = 1.0
    """Within which distance of its key a new entry answers, in units of the layer's inputs. It grows to where a prompt
    with the same answer lies, and is halved towards one with another."""
    steps: AtLeastOne = 100
    """Steps of Adam by which a value is found."""
    rate: Positive = 1.0
    """Adam's rate."""
    begin: Literal["cold", "warm"] = "cold"
    """Where a new value begins: `cold`, at numbers drawn from 0 to 1; `warm`, at what the layer gives by itself."""
    replacement: Replacement = "replace_last"
    """What is replaced in a text that asks: `replace_last`, the position that matches; `replace_prompt`, those before
    it, as published for encoders; `replace_all`, all of them, those of the answer too."""
    phrasings: Count = 0
    """How many rephrases that a fact brings have entries beside its prompt."""
