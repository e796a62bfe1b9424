"""Q: the gram of the keys of earlier facts, derived from the keys that the store keeps of the live ones."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from lifelong_edit.bench import Bench
from lifelong_edit.numerics.grams import ExactGram, scaled_rows
from lifelong_edit.numerics.lowrank import Gram, LowRank, few_enough
from lifelong_edit.stores import FactKeys


class Earlier:
    """Q of every module, exact whatever the order in which facts came and went.

    Of a fact the keys in its own words are stored, and behind them their mean over contexts as the solve had it: that
    one is counted.
    """

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._grams = {n: ExactGram(n, bench.scale[n]) for n in bench.names}
        self._means: dict[str, tuple[FactKeys, FactKeys]] = {}

    def over(self, live: Mapping[str, FactKeys]) -> dict[str, Gram]:
        """Q of exactly these facts by module, (d_in, d_in) float64: by its rows where text is, and they are few."""
        means = {digest: self._mean(digest, keys) for digest, keys in live.items()}
        self._means = {digest: (live[digest], mean) for digest, mean in means.items()}
        return {name: self._of(name, means) for name in self._grams}

    def _of(self, module: str, means: Mapping[str, FactKeys]) -> Gram:
        text, scale = self._bench.text_gram.low_rank(module), self._bench.scale[module]
        if text is None or not few_enough(len(text.rows) + len(means), len(scale)):
            return self._grams[module].over(means)
        rows = scaled_rows(module, (means[digest] for digest in sorted(means)), scale)
        return LowRank(rows, torch.zeros_like(scale))

    def _mean(self, digest: str, keys: FactKeys) -> FactKeys:
        # The same object for the same keys: by it a gram tells what came and went.
        known = self._means.get(digest)
        if known is not None and known[0] is keys:
            return known[1]
        return FactKeys({name: rows[-1:] for name, rows in keys.rows.items()}, keys.conflict)
