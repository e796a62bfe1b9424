"""What a solve holds still: P = c₀C₀ + c₁ Σ kᵀk over preserved prompts + Σ kᵀk over live facts that are no rows."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

from lifelong_edit.bench import Bench
from lifelong_edit.editors.ridge.settings import RidgeSettings
from lifelong_edit.numerics.grams import ExactGram, rows_among, scaled_rows
from lifelong_edit.numerics.lowrank import Gram, LowRank, few_enough
from lifelong_edit.numerics.solver import Held, Kept, factorise, woodbury_is_cheaper
from lifelong_edit.stores import FactKeys
from lifelong_edit.tracing.rows import Row
from lifelong_edit.tracked import in_order


class Preservation:
    """The grams of a bench, kept exact from one solve to the next, whatever came and went."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self._live = {n: ExactGram(n, bench.scale[n]) for n in bench.names}
        self._preserved = {n: ExactGram(n, bench.scale[n]) for n in bench.names}

    def gram(
        self,
        module: str,
        s: RidgeSettings,
        keys: float,
        live: Mapping[str, FactKeys],
        subjects: Container[str],
        coming: int = 0,
    ) -> Gram:
        """P of a module, (d_in, d_in) float64: by its rows where text is kept as a factor, and all rows are few.

        keys: c₁, the weight of the keys of all preserved prompts. live: the live facts that are not among the rows.
        subjects: case-folded ones that facts have changed; what preserved prompts say of them may change. All others
        are held by their keys in the base model, rows or not. coming: how many rows a solve will have beside it.
        """
        bench = self.bench
        held = bench.preserved.keys_outside(subjects) if keys else {}
        c0 = s.subject_c0 if module in bench.at_subject else s.c0
        text = bench.text_gram.low_rank(module, c0)
        if text is not None:
            among = sum(rows_among(module, facts.values(), len(text.rest)) for facts in (live, held))
            if few_enough(len(text.rows) + among + coming, len(text.rest)):
                return self._by_rows(module, text, keys, live, held)
        gram = bench.text_gram.add_to(self._live[module].over(live), module, c0)
        return gram.add_(self._preserved[module].over(held), alpha=keys) if held else gram

    def _by_rows(
        self, module: str, text: LowRank, keys: float, live: Mapping[str, FactKeys], held: Mapping[str, FactKeys]
    ) -> LowRank:
        """The same sum; the rows come in the order of the facts' digests and the prompts' numbers, whatever came first.

        Nothing is kept from one solve to the next: what is few is read again.
        """
        scale = self.bench.scale[module]
        found = text.plus(scaled_rows(module, (live[digest] for digest in in_order(live)), scale))
        return found.plus(scaled_rows(module, held.values(), scale).mul_(keys**0.5)) if held else found

    def held(
        self,
        s: RidgeSettings,
        ridges: Mapping[str, float],
        live: Mapping[str, FactKeys],
        rows: Sequence[Row],
        passes: int,
        subjects: Container[str],
    ) -> Held:
        """P per module for all passes of a batch, with a factor of P + λI where Woodbury will use it more than once.

        Of several processes each has those of its own modules.
        """
        loaded = self.bench.loaded

        def of(name: str) -> tuple[Gram, Kept | None]:
            module = loaded.module(name)
            positions = sum(row.positions_in(module) for row in rows)
            gram = self.gram(name, s, s.preserved_keys, live, subjects, positions)
            if isinstance(gram, LowRank):
                return gram, factorise(gram, ridges[name])
            worth = passes > 1 and woodbury_is_cheaper(positions, module.d_in)
            return gram, factorise(gram, ridges[name]) if worth else None

        return loaded.world.kept(self.bench.names, of)
