"""Constants of the published code, for the models that it names, and what stands in their place for all others.

Source: the hyperparameter files of kmeng01/rome and kmeng01/memit, scalable-model-editing/unified-model-editing,
jianghoucheng/AlphaEdit and jianghoucheng/NSE; of zjunlp/EasyEdit for Llama-2, Llama-3.2, Mistral and Qwen, which those
do not have. None of them has a file for Gemma. Stores were made with these numbers: they do not change.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from lifelong_edit.editors.locate.settings import LocateSettings, Metric
from lifelong_edit.models import LoadedModel

GPT2_XL, GPT_J, LLAMA_2, LLAMA_3 = ("gpt2", 48, 6400), ("gptj", 28, 16384), ("llama", 32, 11008), ("llama", 32, 14336)
GPT2_MEDIUM, GPT2_LARGE = ("gpt2", 24, 4096), ("gpt2", 36, 5120)
LLAMA_32_1B, LLAMA_32_3B = ("llama", 16, 8192), ("llama", 28, 8192)
MISTRAL, QWEN_2 = ("mistral", 32, 14336), ("qwen2", 28, 18944)
"""Model type, layers, and the inputs of the MLP's output projection. Qwen2-7B and Qwen2.5-7B are alike in these."""
ALONE = frozenset({"rome", "r-rome"})
"""Rules that take one fact at a time, in one matrix."""
RATE = 0.5
"""The step of the search where none is published, in the typical size of the hidden state's entries: by their median,
since in many models a few entries are hundreds of times as large as the others."""
MEDIAN = 1.4826
"""The deviation of a normal distribution over the median of its absolute values."""
SIXTH = 0.15625
"""EMMET's c₀ over d_in for GPT-2-XL: 1,000 over 6,400."""


@dataclass(frozen=True)
class Constants:
    """What a store's settings come to for its model.

    rate: None is RATE, relative to the hidden state. c0: None is `c0_share` of a matrix's inputs. penalty, threshold:
    of AlphaEdit; threshold None goes by the share of the trace. settled, reach: of NSE; None by its relative rule.
    """

    steps: int = 25
    rate: float | None = None
    decay: float = 0.5
    clamp: float = 0.75
    c0: float | None = None
    c0_share: float = 1.0
    metric: Metric = "text"
    penalty: float = 0.1
    threshold: float | None = None
    neurons: float = 1.0
    settled: float | None = None
    reach: float | None = None


MEMIT: Mapping[tuple[str, int, int], Constants] = {
    GPT2_XL: Constants(20, 0.5, 0.5, 0.75, 20_000.0),
    GPT_J: Constants(25, 0.5, 0.5, 0.75, 15_000.0),
    LLAMA_2: Constants(25, 0.5, 1e-3, 4.0, 15_000.0),
    LLAMA_3: Constants(25, 0.1, 0.5, 0.75, 15_000.0),
    **dict.fromkeys((LLAMA_32_1B, LLAMA_32_3B, MISTRAL, QWEN_2), Constants(25, 0.5, 1e-3, 4.0, 15_000.0)),
}
ROME: Mapping[tuple[str, int, int], Constants] = {
    GPT2_MEDIUM: Constants(20, 0.5, 0.5, 3.0),
    **dict.fromkeys((GPT2_LARGE, GPT2_XL, GPT_J), Constants(20, 0.5, 0.5, 4.0)),
    **dict.fromkeys(
        (LLAMA_2, LLAMA_3, LLAMA_32_1B, LLAMA_32_3B, MISTRAL, QWEN_2),
        Constants(25, 0.5, 1e-3, 4.0, metric="identity"),
    ),
}
EMMET_C0 = {GPT2_XL: 1000.0, GPT_J: 1.0, LLAMA_2: 1.0, LLAMA_3: 1.0}
NSE = {GPT2_XL: (35.0, 150.0, 10_000.0, 1.0), GPT_J: (15.0, 100.0, 15_000.0, 0.8), LLAMA_3: (2.5, 50.0, 15_000.0, 1.0)}
"""settled, reach, c₀, share of the neurons."""


def outline_of(loaded: LoadedModel) -> tuple[str, int, int]:
    """By what a model is known here: its type, its layers, the inputs of its last edited matrix."""
    return loaded.family.model_type, loaded.layers, loaded.modules[-1].d_in


def constants_of(settings: LocateSettings, known: tuple[str, int, int]) -> Constants:
    """What holds for a model: what the settings say, else what is published for it, else the rule for all others."""
    found = _of_rule(settings.editor, known)
    if settings.units == "published":
        found = _absolute(settings, found, known)
    told = ("steps", "rate", "decay", "clamp", "c0", "metric", "penalty", "neurons", "settled", "reach")
    given = {name: value for name in told if (value := getattr(settings, name)) is not None}
    return replace(found, **given)


def _of_rule(editor: str, known: tuple[str, int, int]) -> Constants:
    if editor in ALONE:
        return ROME.get(known, Constants(steps=20, clamp=4.0))
    found = MEMIT.get(known, Constants())
    if editor == "emmet":
        return replace(found, c0=EMMET_C0.get(known), c0_share=SIXTH)
    if editor == "nse" and known in NSE:
        return replace(found, c0=NSE[known][2], neurons=NSE[known][3])
    return found


def _absolute(settings: LocateSettings, found: Constants, known: tuple[str, int, int]) -> Constants:
    settled, reach = NSE.get(known, (None, None))[:2]
    penalty = 1.0 if known == LLAMA_3 else 10.0
    return replace(found, threshold=settings.free, penalty=penalty, settled=settled, reach=reach)
