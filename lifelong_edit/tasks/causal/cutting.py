"""A causal model's texts in two parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from lifelong_edit.models import Encoded, LoadedModel, TokenBatch
from lifelong_edit.tasks.causal.begun import Begun, begin, ends_of
from lifelong_edit.tasks.causal.scoring import answer_logits


@dataclass(frozen=True)
class CausalCutter:
    """Keeps what attention does of the beginnings; `model` is one of which `begun.can_be_cut`."""

    model: LoadedModel

    def begin(self, texts: Sequence[Sequence[int]], micro_batch: int) -> list[Begun]:
        """What attention keeps of texts' first tokens."""
        return begin(self.model, texts, micro_batch)

    def ends_of(self, examples: Sequence[Encoded], begun: Sequence[Begun]) -> list[Encoded]:
        """What follows in texts the tokens that were kept of each."""
        return ends_of(examples, begun)

    def logits(self, inputs: TokenBatch, begun: Sequence[Begun]) -> Tensor:
        """Logits at the answers' positions alone, (n, vocabulary) float32."""
        return answer_logits(self.model, inputs, begun)
