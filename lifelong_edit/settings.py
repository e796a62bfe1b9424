"""What a store fixes at `init` whatever its editing rule is, and how settings are checked."""

from __future__ import annotations

import contextlib
import functools
import math
import re
import types
from collections.abc import Mapping
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ClassVar,
    Literal,
    Self,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import msgspec
from msgspec import Meta

from lifelong_edit.errors import UsageError

if TYPE_CHECKING:
    import torch

AUTHOR_VARIABLE = "LIFELONG_AUTHOR"
"""The environment variable that says who makes steps, unless a call does."""
KEY_VARIABLE = "LIFELONG_KEY_FILE"
"""The environment variable that names the key file of encrypted stores; several, separated as in PATH, are tried."""
SUBJECT = "@subject"
"""Stands behind a module's name where it is edited at the tokens of the subject, not at the answer."""

T = TypeVar("T", bound=msgspec.Struct)
Positive = Annotated[float, Meta(gt=0)]
NotNegative = Annotated[float, Meta(ge=0)]
BelowOne = Annotated[float, Meta(ge=0, lt=1)]
AtLeastOne = Annotated[int, Meta(ge=1)]
Count = Annotated[int, Meta(ge=0)]
FormSetting = Literal["plain", "chat", "both"]
ShiftDtype = Literal["float32", "float16"]
SolvePlace = Literal["matrix", "cpu"]
Contradiction = Literal["supersede", "reject", "keep", "quarantine"]


class Ranged(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings whose ranges stand in their types; they hold however the struct is made.

    Raises UsageError, naming the setting, for a value that is out of range, of another type, or no finite number.
    """

    def __post_init__(self) -> None:
        for name, hint in _hints(type(self)).items():
            _require(name, getattr(self, name), hint)

    def replace(self, **changes: object) -> Self:
        """The same settings with some fields changed, checked again."""
        return msgspec.structs.replace(self, **changes)


class StoreSettings(Ranged, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Fixed at `init`, stored with the store, and part of what decides each digest. A rule's settings extend these."""

    order: ClassVar[tuple[str, ...]] = ()
    """The order in which the fields are shown, and their digest takes them; empty: that of the struct."""
    at_rest: ClassVar[Mapping[str, tuple[str | int | None, ...]]] = {
        "form": (None, "plain"), "system": (None,), "gate_noise": (None,), "shift_dtype": ("float32",),
        "solve_device": ("matrix",), "key_dtype": ("float32",),
    }  # fmt: skip
    """Fields that stores did not have from the first on, and the values with which all is as it was without them."""
    before: ClassVar[Mapping[str, object]] = {}
    """Those of them whose default is another value, and the one that they had before they could be set."""

    modules: tuple[str, ...] = ()
    """Names of the edited weight matrices. A name with `@subject` behind it is edited at the tokens of the subject, all
    others at the answer. Empty: the network's modules, if there is a network, else those of the upper half of the
    layers, six at most."""
    device: str = "cpu"
    """Where the model lives: `cpu`, `cuda`, `cuda:1`, `mps`; `auto`, an accelerator, and beside it whatever else the
    model needs; a device map, a file whose name ends in `.json`; or `sharded`, a shard in each of several processes. To
    which devices parts of a model go decides no draw: with a map or shards all draws are those of a store on the
    CPU."""
    dtype: str = "float32"
    """How the model is held: `float32` or `bfloat16`. Statistics and solves are in float32 or better in both cases."""
    micro_batch: AtLeastOne = 64
    """Sequences per forward and backward pass. The weights do not depend on it beyond rounding."""
    seed: int = 0
    """Seed of every random draw."""
    editor: str = "gradient"
    """The editing rule, one of those that `lifelong-edit editors` lists. Unless told otherwise a store that is made
    with a hypernetwork, as one for `atlas` is, has `malmen`, one for a classifier or for a decoder whose states
    have 512 numbers or more `neurons`, and any other `gradient`."""
    preserved_tokens: AtLeastOne = 3
    """How many tokens of the base model's own answer to a preserved prompt are held."""
    text_tokens: AtLeastOne = 60_000
    """Over how many tokens of ordinary text the gram C₀ is taken."""
    gram_rank: Count | None = None
    """Rank of the factor that C₀ is kept as, beside a diagonal. 0: C₀ is kept whole, in float64. None: whole up to a
    d_in of 8,192, beyond it a factor of rank 1,024."""
    snapshot_every: AtLeastOne = 10
    """Steps between two states that are stored whole, so that going back stays quick."""
    shift_dtype: ShiftDtype = "float32"
    """In which numbers the store keeps what a step changes: `float32`, or `float16` for half the disk. A step is what
    is stored of it, so it is rounded before it is judged: an entry is off by at most 2⁻¹¹ of itself. `show` has the
    error of each step."""
    key_dtype: ShiftDtype = "float32"
    """In which numbers the store keeps, and holds in memory, the key of each fact by which contradictions are found:
    `float32`, or `float16` for half of it, off by at most 2⁻¹¹ of each entry. The keys of solves are whole numbers of
    16 bits in both cases."""
    gate_perplexity: float = 1.5
    """The gate refuses a batch after which perplexity exceeds this multiple of the base model's."""
    gate_noise: NotNegative | None = None
    """The gate also refuses a batch after which perplexity on the store's sample exceeds the base model's by more than
    another sample of text might: by so many standard errors of the mean loss over the sample's windows. 0: it does not.
    None: 3 for a model whose states have 512 numbers or more, else 0, as in all stores that are older than this."""
    gate_min_taken: NotNegative = 0.0
    """The gate refuses a batch of which a smaller share of facts took, by generation."""
    conflict_probability: Positive | None = None
    """From which probability on two facts about one subject count as asking for the same thing. None: the threshold of
    the store's scorer, which is chosen for one false alarm in 1,000 unrelated facts. 1: only what is equal in so many
    words."""
    conflict_cosine: float = -1.0
    """Two facts are compared only where the cosine of their centred keys is at least this. −1: all are compared."""
    conflict_policy: Contradiction = "supersede"
    """What follows from a contradiction: `supersede`, `reject`, `keep` or `quarantine`."""
    trusted_sources: tuple[str, ...] = ()
    """Values of `source`, by comma, the most trusted first, with `*` for any text. All other sources come after them. A
    fact never replaces one from a more trusted source."""
    form: FormSetting | None = None
    """In which form facts are taught, prompts are preserved and answers are judged: `plain`, the prompt to be
    continued; `chat`, a turn put through the model's chat template; or `both`. None: `both` where a new store's model
    has a chat template, else `plain`, as in all stores that are older than this setting."""
    system: str | None = None
    """The system prompt of the turns. None: what the chat template puts there by itself."""
    solve_device: SolvePlace = "matrix"
    """Where keys and gradients of a matrix go, and its statistics and solves are: `matrix`, on the device that holds
    it, or on the CPU where that has no float64; or `cpu`, which leaves the device to the model."""

    def placed(self, device: torch.device) -> Self:
        """The settings with all settled that depends on where the model lives: what a new store fixes."""
        return self

    def told(self) -> dict[str, Any]:
        """The settings as plain values by name, in their fixed order."""
        found: dict[str, Any] = msgspec.to_builtins(self)
        return {name: found[name] for name in self.order or found}

    def encoded(self) -> bytes:
        """The same as JSON: what their digest is taken over.

        Without what came later and is at rest, so that stores which are older draw as they always did. A device map is
        the CPU there: it is a file of one machine. So are shards: how many there are is said by each command.
        """
        told = self.told()
        told["device"] = "cpu" if is_map(self.device) or self.device == SHARDED else self.device
        return msgspec.json.encode({name: told[name] for name in told if told[name] not in self.at_rest.get(name, ())})


SHARDED = "sharded"
"""The device of a model of which each process of a world holds a shard."""


def is_map(device: str) -> bool:
    """Whether what is said of a device names the file of a device map."""
    return device.endswith(".json")


def settings_of(kind: type[T], given: Mapping[str, object]) -> T:
    """A struct of settings from values by name, which may be texts as a command line has them.

    Raises UsageError, naming the setting, for a value that does not fit. The names are fields of `kind`.
    """
    hints, found = _hints(kind), dict[str, Any]()
    for name, value in given.items():
        try:
            found[name] = msgspec.convert(_bare(value), hints[name], strict=False)
        except msgspec.ValidationError:
            raise UsageError(f"setting {name} is {_said(value)}; it must be {_wanted(hints[name])}") from None
    return kind(**found)


def _bare(value: object) -> object:
    """A value in which a number that begins with its point has a 0 before it, as JSON wants it."""
    return re.sub(r"^([+-]?)(?=\.\d+(?:[eE][+-]?\d+)?$)", r"\g<1>0", value) if isinstance(value, str) else value


def is_list(kind: type[msgspec.Struct], name: str) -> bool:
    """Whether a field of `kind` is a list of texts, which a command line has as names by comma."""
    return get_origin(_hints(kind)[name]) is tuple


def _said(value: object) -> str:
    """A value as a message has it: numbers are bare, be they typed or not."""
    with contextlib.suppress(ValueError):
        return f"{float(value):g}" if isinstance(value, str) else repr(value)
    return repr(value)


@functools.cache
def _hints(kind: type[msgspec.Struct]) -> dict[str, Any]:
    found = get_type_hints(kind, include_extras=True)
    return {name: found[name] for name in kind.__struct_fields__}


def _require(name: str, value: object, hint: Any) -> None:
    # JSON has no infinity: it would be stored as null, and come back as the default.
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"setting {name} is {value}; it must be a finite number")
    try:
        msgspec.convert(value, hint)
    except msgspec.ValidationError:
        raise UsageError(f"setting {name} is {value!r}; it must be {_wanted(hint)}") from None


def _wanted(hint: Any) -> str:
    """A type with its range, in words."""
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(_wanted(part) for part in get_args(hint))
    if get_origin(hint) is Literal:
        return " or ".join(repr(choice) for choice in get_args(hint))
    if get_origin(hint) is not Annotated:
        known: dict[Any, str] = {
            bool: "true or false",
            int: "a whole number",
            float: "a number",
            str: "a text",
            type(None): "none",
        }
        return known.get(hint, "a list of texts")
    kind, meta = get_args(hint)
    bounds = [f"greater than {_number(meta.gt)}"] if meta.gt is not None else []
    bounds += [f"at least {_number(meta.ge)}"] if meta.ge is not None else []
    bounds += [f"less than {_number(meta.lt)}"] if meta.lt is not None else []
    bounds += [f"at most {_number(meta.le)}"] if meta.le is not None else []
    return f"{_wanted(kind)} {' and '.join(bounds)}"


def _number(bound: float) -> str:
    words: dict[float, str] = {0: "zero", 1: "one"}
    return words.get(bound, f"{bound:g}")
