"""Fluency of what a model writes by itself: the entropy of its word pairs and triples.

The weighted mean of bi- and trigram entropies, "generation entropy" (GE) in ROME (arXiv 2202.05262, section 3.4; after
Zhang et al., arXiv 1809.05972): a model that repeats itself has a low one. Weights and sampling as in the released
code; words are runs of letters and digits, or one other sign, where that code takes NLTK's, and the prompt is left out.
Figures of two models can be compared, those of two papers hardly.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from lifelong_edit.models import LoadedModel, generate
from lifelong_edit.tasks import require_causal, task_of

WEIGHTS = {2: 1 / 3, 3: 2 / 3}
"""Of the entropies of pairs and of triples; the released code's 2/3 and 4/3, halved by its mean over the two."""
LENGTH = 100
"""Tokens that are generated after a prompt, fewer where the context or the model ends the text."""
TOP = 5
"""Each token is drawn from so many of the most probable ones."""
_WORD = re.compile(r"\w+|[^\w\s]")


def ngram_entropy(words: Sequence[str], n: int) -> float:
    """Entropy, in bits, of the distribution of runs of n words; 0 for a text that has none."""
    counts = np.array(list(Counter(zip(*(words[i:] for i in range(n)), strict=False)).values()), dtype=np.float64)
    shares = counts / counts.sum()
    # Of the reciprocal, so that one lone run has 0 and not −0.
    return float((shares * np.log2(1 / shares)).sum())


def generation_entropy(text: str) -> float:
    """GE of one text, in bits: a third of the entropy of its word pairs and two thirds of that of its triples."""
    words = _WORD.findall(text)
    return sum(weight * ngram_entropy(words, n) for n, weight in WEIGHTS.items())


def sampler(seed: int, top: int = TOP) -> Callable[[Tensor], Tensor]:
    """Draws a token for each row of logits (b, vocabulary), out of the `top` most probable: (b,) long."""
    generator = torch.Generator().manual_seed(seed)

    def choose(logits: Tensor) -> Tensor:
        # A model that has collapsed gives NaN, from which nothing could be drawn.
        best = logits.float().cpu().nan_to_num().topk(min(top, logits.shape[-1]))
        drawn = torch.multinomial(best.values.softmax(-1), 1, generator=generator)
        return best.indices.gather(-1, drawn)[:, 0].to(logits.device)

    return choose


def continuations(loaded: LoadedModel, prompts: Sequence[str], seed: int = 0, length: int = LENGTH) -> list[str]:
    """What the model writes after each prompt: up to `length` tokens by seeded sampling (`sampler`).

    Raises UsageError for a model that is not causal: only such a one writes on by itself.
    """
    require_causal(loaded, "fluency", "--fluency")
    new = generate(loaded, prompts, length, choose=sampler(seed))
    return [task_of(loaded).text(loaded, prompt, g) for prompt, g in zip(prompts, new, strict=True)]
