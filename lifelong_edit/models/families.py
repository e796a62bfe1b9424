"""Model families, keyed by `config.model_type`: which weight matrices are edited by default."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from torch import nn
from transformers.pytorch_utils import Conv1D

from lifelong_edit.errors import UnknownModelError
from lifelong_edit.models.forms import Forms, Question
from lifelong_edit.settings import SUBJECT

Orientation = Literal["conv1d", "linear"]
Kind = Literal["causal", "classify", "masked", "seq2seq"]
"""What a model is asked to do: to write on, to give a text a label, to fill masks, to write an answer of its own."""
CALLED: dict[Kind, tuple[str, str]] = {
    "causal": ("a decoder", "decoders"),
    "classify": ("a classifier", "classifiers"),
    "masked": ("a masked language model", "masked language models"),
    "seq2seq": ("an encoder-decoder", "encoder-decoders"),
}
"""What models of each kind are called in sentences: one, and several."""
Positions = Literal["answer", "subject", "question"]
"""Where a module is edited: where answer tokens are made, at the subject's tokens, or at all tokens of the question, as
those of an encoder that a decoder reads."""
Home = Literal["answer", "subject", "memory", "located", "one"] | float
"""Where a rule edits unless modules are named: the upper layers at the answer, lower ones at the subject, one of them
there (`memory_layer`), there in the layers in which published work located a model's facts, or in one of those; a
number: in one layer at the answer, at this share of the depth."""

# MALMEN (arXiv 2311.04661, section 5.1) edits six layers; more cost time and memory in proportion.
MOST_LAYERS = 6
# Beside them, where the subject is read, if asked for.
MOST_SUBJECT_LAYERS = 4
# Of a rule that edits at the subject alone.
MOST_READING = 5
LOCATED: dict[tuple[str, int], tuple[str | None, str]] = {
    ("gpt2", 24): (None, "8"),
    ("gpt2", 36): (None, "12"),
    ("gpt2", 48): ("13-17", "17"),
    ("gptj", 28): ("3-8", "5"),
    **dict.fromkeys((("llama", 16), ("llama", 28), ("llama", 32), ("mistral", 32), ("qwen2", 28)), ("4-8", "5")),
}
"""The layers that MEMIT edits, and the one that ROME does, by model type and depth: GPT-2 medium, large and XL, GPT-J,
Llama, Mistral, Qwen. None: published for ROME alone.

As the published hyperparameters have them (arXiv 2202.05262, 2210.07229, 2410.02355 and 2308.07269).
"""


@dataclass(frozen=True)
class Family:
    """What is specific to one `model_type`.

    output: name of the MLP output projection with `{layer}` in it; None where only modules named
    by hand are known. kind: how a prompt and its target become one input; of an encoder its head decides (`HEADS`).
    decoder: of an encoder-decoder that of the decoder's layers, whose numbers go on from those of the encoder's.
    """

    model_type: str
    output: str | None
    kind: Kind = "causal"
    decoder: str | None = None


class Outlined(Protocol):
    """What a model is before its weights are read, which is enough to encode texts: an outline, or a loaded model."""

    @property
    def family(self) -> Family:
        """Its family, which says its kind."""

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer, whose `model_max_length` is the model's context."""

    @property
    def forms(self) -> Forms:
        """The forms in which it is taught and asked."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of a classifier's labels by number, see `labels_of`; none of another model."""

    def put(self, question: Question) -> Question:
        """A question as it is to be read at the state at which the model stands."""


@dataclass(frozen=True)
class EditableModule:
    """One weight matrix that may be edited: y = kW + b, with W of shape (d_in, d_out).

    orientation says how the model stores it: "conv1d" as W, "linear" as its transpose.
    layer is the number in its name, from 0 at the input. positions says where in a text its keys are taken:
    "answer" at those whose next token is an answer token, "subject" at the tokens of the fact's subject, "question" at
    all tokens that an encoder reads.
    """

    name: str
    d_in: int
    d_out: int
    orientation: Orientation
    layer: int
    positions: Positions = "answer"

    @property
    def entry(self) -> str:
        """The module as `--modules` names it."""
        return self.name + (SUBJECT if self.positions == "subject" else "")


_DOWN = "layers.{layer}.mlp.down_proj"
_LLAMA_LIKE = (
    *("llama", "mistral", "ministral3", "qwen2", "qwen3", "qwen3_5_text", "gemma", "gemma2", "gemma3_text"),
    *("phi3", "olmo", "olmo2", "olmo3", "stablelm", "cohere", "cohere2", "granite", "smollm3", "glm", "glm4"),
)
_ENCODER = "encoder.layer.{layer}.output.dense"
_T5 = "{}coder.block.{{layer}}.layer.{}.DenseReluDense.wo"
_BART = "model.{}coder.layers.{{layer}}.fc2"
# A language model inside of one that sees as well.
_INSIDE = ("gemma3", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "llava", "mistral3")

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        Family("gpt2", "transformer.h.{layer}.mlp.c_proj"),
        Family("gpt_neo", "transformer.h.{layer}.mlp.c_proj"),
        Family("gpt_neox", "gpt_neox.layers.{layer}.mlp.dense_4h_to_h"),
        Family("gptj", "transformer.h.{layer}.mlp.fc_out"),
        Family("opt", "model.decoder.layers.{layer}.fc2"),
        Family("phi", "model.layers.{layer}.mlp.fc2"),
        Family("falcon", "transformer.h.{layer}.mlp.dense_4h_to_h"),
        Family("bloom", "transformer.h.{layer}.mlp.dense_4h_to_h"),
        Family("mpt", "transformer.blocks.{layer}.ffn.down_proj"),
        Family("starcoder2", "model.layers.{layer}.mlp.c_proj"),
        Family("gpt_bigcode", "transformer.h.{layer}.mlp.c_proj"),
        *(Family(name, f"model.{_DOWN}") for name in _LLAMA_LIKE),
        *(Family(name, f"model.language_model.{_DOWN}") for name in _INSIDE),
        *(Family(name, f"model.text_model.{_DOWN}") for name in ("idefics3", "smolvlm")),
        Family("bert", f"bert.{_ENCODER}", "masked"),
        *(Family(name, f"roberta.{_ENCODER}", "masked") for name in ("roberta", "xlm-roberta", "camembert")),
        Family("distilbert", "distilbert.transformer.layer.{layer}.ffn.lin2", "masked"),
        Family("electra", f"electra.{_ENCODER}", "masked"),
        Family("deberta-v2", f"deberta.{_ENCODER}", "masked"),
        Family("modernbert", "model.layers.{layer}.mlp.Wo", "masked"),
        *(Family(name, _T5.format("en", 1), "seq2seq", _T5.format("de", 2)) for name in ("t5", "mt5", "umt5")),
        *(Family(name, _BART.format("en"), "seq2seq", _BART.format("de")) for name in ("bart", "mbart", "pegasus")),
    )
}

HEADS: dict[str, Kind] = {
    "ForSequenceClassification": "classify",
    "ForMaskedLM": "masked",
    "ForConditionalGeneration": "seq2seq",
}
"""The kind of a model that is no decoder, by how the name of its architecture ends."""


# By which names configurations say how many experts a layer has.
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


def family_of(config: Any, modules: Sequence[str] | None) -> Family:
    """The family of a model's configuration; one without defaults where the caller names modules by hand.

    So has a mixture of experts without any modules named: `find_modules` says what it has, once it is there.
    Raises UnknownModelError for an unknown type without named modules, and for an encoder without a head.
    """
    name: str = config.model_type
    if name in FAMILIES:
        return _with_head(FAMILIES[name], config)
    if not modules and not has_experts(config):
        raise UnknownModelError(
            f"unknown model type {name!r}: known are {', '.join(sorted(FAMILIES))}; for others name the weight "
            "matrices to edit by hand, e.g. --modules model.layers.10.mlp.down_proj,model.layers.11.mlp.down_proj"
        )
    return Family(name, None)


def _with_head(family: Family, config: Any) -> Family:
    """A family with the kind that a model's head makes it; decoders have one head."""
    named: str | None = next(iter(getattr(config, "architectures", None) or ()), None)
    if family.kind == "causal" or named is None:
        return family
    kinds = [kind for ending, kind in HEADS.items() if named.endswith(ending)]
    if not kinds or (family.kind == "seq2seq") != (kinds[0] == "seq2seq"):
        raise UnknownModelError(
            f"found a {family.model_type} model with the architecture {named}, which gives no answers; expected one "
            f"whose config.json names an architecture that ends in {', '.join(HEADS)}; fine-tune it with such a head"
        )
    return replace(family, kind=kinds[0])


REFUTES, SUPPORTS = "REFUTES", "SUPPORTS"
"""The labels of a head of one logit: more probable than not is SUPPORTS, as published (MALMEN, arXiv 2311.04661)."""


def labels_of(family: Family, config: Any) -> tuple[str, ...]:
    """The names of a classifier's labels by number; none of another model.

    Raises UnknownModelError for a head that does not choose one of its labels.
    """
    if family.kind != "classify":
        return ()
    if getattr(config, "problem_type", None) in ("multi_label_classification", "regression"):
        raise UnknownModelError(
            f"found a {family.model_type} classifier for {config.problem_type}, expected one that chooses one label; "
            "take such a model"
        )
    names = tuple(str(config.id2label[number]) for number in range(config.num_labels))
    return (REFUTES, SUPPORTS) if len(names) == 1 else names


def has_experts(config: Any) -> bool:
    """Whether a model is a mixture of experts, by its configuration."""
    text = config.get_text_config()
    return any(isinstance(n := getattr(text, name, None), int) and n > 1 for name in _EXPERTS)


def find_modules(
    model: Any, family: Family, modules: Sequence[str] | None, places: Home = "answer"
) -> tuple[EditableModule, ...]:
    """The editable modules of a model in order of depth: those asked for, else those that are edited at `places`.

    modules: exact module names, layer numbers ("7") or ranges of them, both ends included ("3-5"); with "@subject"
    behind them they are edited at the tokens of the subject ("0-2@subject").
    Raises UnknownModelError for a name that does not exist or is no linear map, and for one that is named both ways.
    """
    if not modules and family.output is None:
        raise UnknownModelError(f"no module is named: {_fused(family.model_type)}; {_examples(model)}")
    depth = depth_of(model.config)
    order = {name: number for number, (name, _) in enumerate(model.named_modules())}
    at: dict[str, Positions] = {}
    for entry in modules or entries_of(family, depth, places):
        plain = entry.strip().removesuffix(SUBJECT)
        where: Positions = "answer" if plain == entry.strip() else "subject"
        if "@" in plain:
            raise UnknownModelError(f"found {entry.strip()!r}, expected nothing or {SUBJECT} behind a module's name")
        for name in _expand(plain, family, depth):
            if name not in order:
                raise UnknownModelError(f"no module {name!r} in this {family.model_type} model; {_examples(model)}")
            if at.setdefault(name, where) != where:
                raise UnknownModelError(f"module {name!r} is named with {SUBJECT} and without; expected one of the two")
    found = {name: at[name] if family.kind != "seq2seq" else _side(model, name, at[name]) for name in at}
    return tuple(_editable(model, name, found[name]) for name in sorted(at, key=order.__getitem__))


def _side(model: Any, name: str, where: Positions) -> Positions:
    """Where a module of an encoder-decoder is edited: one of the encoder's at the question unless at the subject.

    Raises UnknownModelError for one of the decoder's at the subject, which a decoder does not read.
    """
    encoder = model.get_encoder()
    if any(module is model.get_submodule(name) for module in encoder.modules()):
        return "question" if where == "answer" else where
    if where == "subject":
        raise UnknownModelError(
            f"module {name!r} is in the decoder, which reads no subject; expected one of the encoder's before {SUBJECT}"
        )
    return where


def depth_of(config: Any) -> tuple[int, int]:
    """How many layers a model has, and an encoder-decoder's decoder beside them; 0 where a configuration is silent."""
    text = config.get_text_config()
    own = int(getattr(text, "num_hidden_layers", 0) or 0)
    if not getattr(config, "is_encoder_decoder", False):
        return own, 0
    behind: Any = getattr(text, "num_decoder_layers", None) or getattr(text, "decoder_layers", own)
    return own, int(behind)


def head_of(model: Any) -> nn.Module | None:
    """The module that turns hidden states into logits, None where there is none."""
    head: nn.Module | None = model.get_output_embeddings()
    return head


def default_layers(layers: int) -> list[str]:
    """The layers whose MLP output projections are edited by default, as an entry of `--modules`: the upper half."""
    return [f"{max(layers // 2, layers - MOST_LAYERS)}-{layers - 1}"]


READ_WHOLE = 0.55
"""How deep a classifier has read a text as a whole: in the fourth of the six layers of a MiniLM claims are told apart
best; in the third and the fifth worse."""
MOST_OF_A_SIDE = MOST_LAYERS // 2
"""Layers of an encoder-decoder's encoder that are edited by default, and of its decoder."""


def _is_read_whole(kind: Kind, places: Home) -> bool:
    """Whether what a rule remembers is a text as a whole, where a model of the kind has read it, and no subject."""
    return kind == "classify" and places == "memory"


def entries_of(family: Family, depth: tuple[int, int], places: Home) -> list[str]:
    """The layers of a model that a rule edits which is at home at `places`, as entries of `--modules`.

    Of an encoder-decoder the upper ones of both sides (MALMEN, section 5.1, and MEND edit the last two of each); a rule
    with another home is at home in the encoder, which reads the question. What a classifier remembers is a text as a
    whole, which it has read a little higher up than a subject.
    """
    layers, behind = depth
    if _is_read_whole(family.kind, places):
        return entries_up_to(min(layers - 1, round(READ_WHOLE * layers)), places, family.kind)
    if family.kind != "seq2seq" or places != "answer":
        return default_entries(layers, places, family.model_type)
    encoder, decoder = (range(max(n // 2, n - MOST_OF_A_SIDE), n) for n in (layers, behind))
    return [str(number) for number in (*encoder, *(layers + number for number in decoder))]


def default_entries(layers: int, places: Home, model_type: str = "") -> list[str]:
    """The layers that a rule edits which is at home at `places`, as entries of `--modules`."""
    if isinstance(places, float):
        return [str(min(layers - 1, round(places * layers)))]
    if places == "answer":
        return default_layers(layers)
    if places == "memory":
        return memory_layer(layers)
    several, one = LOCATED.get((model_type, layers), (None, None))
    if places == "subject" or several is None:
        several = reading_layers(layers)[0]
    return [f"{one or _middle(several)}{SUBJECT}"] if places == "one" else [several.removesuffix(SUBJECT) + SUBJECT]


def _middle(entry: str) -> int:
    """The layer in the middle of a range of them."""
    first, _, last = entry.removesuffix(SUBJECT).partition("-")
    return (int(first) + int(last or first)) // 2


def layers_at(layers: int, depths: Sequence[float]) -> list[int]:
    """The numbers of the layers at shares of the depth of a model with so many, each once, ascending."""
    return sorted({min(layers - 1, round(depth * layers)) for depth in depths})


def memory_layer(layers: int) -> list[str]:
    """The one layer where a rule that adds to what is read of a subject does so: somewhat below the middle.

    13 of the 30 layers of SmolLM2-135M, where this was measured beside 10; another model may ask for a lower one.
    """
    return [f"{min(layers - 1, round(0.43 * layers))}{SUBJECT}"]


def reading_layers(layers: int) -> list[str]:
    """Where a rule edits that is at home at the subject: five layers up to 30 % of the depth.

    5 to 9 of the 30 layers of SmolLM2-135M, where this was measured, and near what MEMIT edits in larger models (arXiv
    2210.07229).
    """
    return entries_up_to(min(layers - 1, round(0.3 * layers)), "subject")


def entries_up_to(layer: int, places: Home, kind: Kind = "causal") -> list[str]:
    """What a rule edits that is at home at `places`, as entries of `--modules`, if `layer` is the highest it edits.

    For rules that edit one layer, or some in a row at the subject.
    """
    if isinstance(places, float) or _is_read_whole(kind, places):
        return [str(layer)]
    first = max(0, layer - MOST_READING + 1) if places in ("subject", "located") else layer
    return [f"{first}-{layer}{SUBJECT}"]


def subject_layers(layers: int) -> list[str]:
    """The layers that may be edited at the subject beside them, as an entry of `--modules`; none of a single layer.

    Up to four about a third of the way up, where a model reads up what it knows of a subject (Meng et al., arXiv
    2202.05262). It depends on the model whether that helps: `train --choose` tries it.
    """
    end = min(layers // 2, (layers + 2) // 3 + 1)
    return [f"{max(0, end - MOST_SUBJECT_LAYERS)}-{end - 1}{SUBJECT}"] if end > 0 else []


def _expand(entry: str, family: Family, depth: tuple[int, int]) -> list[str]:
    """One entry of `--modules` as module names."""
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", entry)
    if match is None:
        return [entry]
    if family.output is None:
        raise UnknownModelError(
            f"layers {entry!r} cannot be chosen by number for model type {family.model_type!r}, whose modules are not "
            "known; name them in full, e.g. --modules model.layers.10.mlp.down_proj"
        )
    first, last = int(match[1]), int(match[2] or match[1])
    if first > last:
        raise UnknownModelError(f"layers {entry!r} run backwards; expected {last}-{first}")
    layers, behind = depth if family.decoder else (depth[0], 0)
    if last >= layers + behind:
        raise UnknownModelError(f"layers {entry!r} do not exist: this model has layers 0 to {layers + behind - 1}")
    own = [family.output.format(layer=layer) for layer in range(first, min(last + 1, layers))]
    return own + [str(family.decoder).format(layer=n - layers) for n in range(max(first, layers), last + 1)]


def _editable(model: Any, name: str, positions: Positions) -> EditableModule:
    module = model.get_submodule(name)
    if not is_linear(module):
        if any(parameter.dim() == 3 for parameter in module.parameters(recurse=False)):
            raise UnknownModelError(
                f"module {name!r} cannot be edited: {_fused(type(module).__name__)}; {_examples(model)}"
            )
        raise UnknownModelError(
            f"module {name!r} is a {type(module).__name__}; only Linear and Conv1D can be edited; {_examples(model)}"
        )
    if module is head_of(model):
        raise UnknownModelError(f"module {name!r} is the output head, often one with the embedding; {_examples(model)}")
    orientation: Orientation = "conv1d" if type(module) is Conv1D else "linear"
    d_in, d_out = shape_of(module)
    numbers = re.findall(r"(?<=\.)\d+(?=\.|$)", f".{name}")
    return EditableModule(name, d_in, d_out, orientation, int(numbers[0]) if numbers else 0, positions)


def shape_of(module: Any) -> tuple[int, int]:
    """(d_in, d_out) of a linear map, however it is stored."""
    shape = module.weight.shape if type(module) is Conv1D else module.weight.shape[::-1]
    return int(shape[0]), int(shape[1])


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a matrix that can be edited."""
    # Exact classes: a quantised or sharded subclass of Linear keeps something else in `weight`. Falcon's is a Linear
    # that adds its bias in a second step.
    return type(module) in (Conv1D, nn.Linear) or type(module).__name__ == "FalconLinear"


def _fused(what: str) -> str:
    return (
        f"the experts of {what} lie fused in parameters of three dimensions, which cannot be edited; name by --modules "
        "what are matrices of their own, as those of shared experts, attention, or layers without experts"
    )


def _examples(model: Any) -> str:
    """Names that would have been accepted, for error messages: the last ones, each of another kind."""
    head = head_of(model)
    found = [name for name, m in model.named_modules() if is_linear(m) and m is not head]
    # Routers choose experts; shared experts and output projections are what one would edit.
    found = [name for name in found if not re.search(r"(router|gate)$", name)]
    found.sort(key=lambda name: bool(re.search(r"shared|down_proj|o_proj|fc2|dense_4h_to_h", name)))
    kinds = {re.sub(r"\d+", "#", name): name for name in found}
    names = sorted(kinds.values(), key=found.index)[-3:]
    return f"it has for example {', '.join(names)}" if names else "it has no Linear or Conv1D module"
