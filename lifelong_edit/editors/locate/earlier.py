"""Q: the gram of the keys of earlier facts, derived from the keys that the store keeps of the live ones."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from lifelong_edit.bench import Bench
from lifelong_edit.numerics.grams import ExactGram, scaled_rows
from lifelong_edit.numerics.lowrank import Gram, LowRank, few_enough
from lifelong_edit.stores import FactKeys
from lifelong_edit.tracked import Follower, Tracked, in_order


class Earlier:
    """Q of every module, exact whatever the order in which facts came and went.

    Of a fact the keys in its own words are stored, and behind them their mean over contexts as the solve had it: that
    one is counted.
    """

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._grams = {n: ExactGram(n, bench.scale[n]) for n in bench.names}
        self._means = Tracked[FactKeys]()
        self._follower = Follower()

    def over(self, live: Mapping[str, FactKeys]) -> dict[str, Gram]:
        """Q of exactly these facts by module, (d_in, d_in) float64: by its rows where text is, and they are few."""
        changed = self._follower.changed(live)
        if changed is None:
            self._means, changed = Tracked(), live.keys()
        for digest in changed:
            keys = live.get(digest)
            if keys is None:
                self._means.pop(digest, None)
            else:
                self._means[digest] = FactKeys({name: rows[-1:] for name, rows in keys.rows.items()}, keys.conflict)
        return {name: self._of(name, self._means) for name in self._grams}

    def _of(self, module: str, means: Mapping[str, FactKeys]) -> Gram:
        text, scale = self._bench.text_gram.low_rank(module), self._bench.scale[module]
        if text is None or not few_enough(len(text.rows) + len(means), len(scale)):
            return self._grams[module].over(means)
        rows = scaled_rows(module, (means[digest] for digest in in_order(means)), scale)
        return LowRank(rows, torch.zeros_like(scale))
