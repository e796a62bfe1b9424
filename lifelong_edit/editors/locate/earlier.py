"""Q: the gram of the keys of earlier facts, derived from the keys that the store keeps of the live ones."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from lifelong_edit.bench import Bench
from lifelong_edit.numerics.grams import ExactGram
from lifelong_edit.stores import FactKeys


class Earlier:
    """Q of every module, exact whatever the order in which facts came and went.

    Of a fact the keys in its own words are stored, and behind them their mean over contexts as the solve had it: that
    one is counted.
    """

    def __init__(self, bench: Bench) -> None:
        self._grams = {n: ExactGram(n, bench.scale[n]) for n in bench.names}
        self._means: dict[str, tuple[FactKeys, FactKeys]] = {}

    def over(self, live: Mapping[str, FactKeys]) -> dict[str, Tensor]:
        """Q of exactly these facts by module, (d_in, d_in) float64."""
        means = {digest: self._mean(digest, keys) for digest, keys in live.items()}
        self._means = {digest: (live[digest], mean) for digest, mean in means.items()}
        return {name: gram.over(means) for name, gram in self._grams.items()}

    def _mean(self, digest: str, keys: FactKeys) -> FactKeys:
        # The same object for the same keys: by it a gram tells what came and went.
        known = self._means.get(digest)
        if known is not None and known[0] is keys:
            return known[1]
        return FactKeys({name: rows[-1:] for name, rows in keys.rows.items()}, keys.conflict)
