"""What a new store takes from the package where its maker gives nothing: text, preserved prompts, hypernetwork."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from lifelong_edit import atlas
from lifelong_edit.editors.registry import NEURONS, PLAIN, TRAINED, core_of, rule_of
from lifelong_edit.editors.ridge.settings import CHOSEN, SOLVE
from lifelong_edit.errors import BadInputError, UsageError
from lifelong_edit.facts import Probe, general_prompts, read_prompts
from lifelong_edit.numerics.forecast import Forecaster, Kind, read_forecasters
from lifelong_edit.policies.scoring import CONFLICTS, Scorer, read_scorer
from lifelong_edit.settings import StoreSettings

BUNDLED_MODEL = "atlas"
OWN = ("training", "begins", "encoder", "wording", "chat_wording", "rank", "width", "negatives")
"""What else a network of a rule beside `malmen` is at home in, or was made with."""
ANSWERING = "atlas-t5"
"""The bundled encoder-decoder, which knows what `atlas` does."""
CHECKING = "atlas-check"
"""The bundled encoder, which tells true claims about the same world from false ones."""


def default_text() -> list[str]:
    """The bundled English prose: what the gram of text keys and the sample of the gate are taken from."""
    path = atlas.text_path()
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


def default_preserved(model: str, editor: str = PLAIN) -> list[Probe]:
    """Prompts whose answers must stay: those of a bundled model, general ones for a rule that takes them, or none."""
    known = {CHECKING: atlas.check_preserved_path()}
    known |= dict.fromkeys((BUNDLED_MODEL, ANSWERING), atlas.preserved_prompts_path())
    path = known.get(model)
    if path is not None and path.is_file():
        return list(read_prompts([str(path)]))
    return general_prompts() if rule_of(editor).general else []


def are_bundled(preserve: Sequence[Probe]) -> bool:
    """Whether all of these prompts come with the package."""
    known = [*general_prompts(), *default_preserved(BUNDLED_MODEL), *default_preserved(CHECKING)]
    return set(preserve) <= set(known)


def solve_of(hypernetwork: Path | None) -> dict[str, Any]:
    """Modules and settings that a network was trained for: a store's defaults, for it is at home in no others.

    With it those that `train --choose` found for the model, where they lie beside the network.
    """
    if hypernetwork is None:
        return {}
    from lifelong_edit.editors.malmen.network import read_config  # imports torch

    config = read_config(hypernetwork)
    kind = rule_of(config.rule).settings
    chosen = settings_from(hypernetwork, kind) if (hypernetwork / CHOSEN).is_file() else {}
    taken = (*SOLVE, *OWN) if config.rule != TRAINED else SOLVE
    solve = {name: config.settings[name] for name in taken if name in config.settings}
    return chosen | solve | {"modules": config.entries}


def start_of(
    model: str, settings: StoreSettings | None, hypernetwork: str | Path | None
) -> tuple[StoreSettings, Path | None]:
    """Settings and network of a new store: those of `default_editor`'s rule, in the solve of its network if it has one.

    Settings of a type that the rule's extends have the rest at its defaults. Raises UsageError where they are of
    another: they could not be read back.
    """
    if settings is not None and issubclass(kind := rule_of(settings.editor).settings, type(settings)):
        settings = kind(**msgspec.structs.asdict(settings))
    if settings is not None and not isinstance(settings, kind):
        raise UsageError(
            f"found {type(settings).__name__} for the editing rule {settings.editor}, expected {kind.__name__}; name "
            "the rule as `editor` in its own settings"
        )
    if hypernetwork is None and (settings is None or core_of(settings.editor) == TRAINED):
        hypernetwork = default_hypernetwork(model)
    network = None if hypernetwork is None else Path(hypernetwork)
    if settings is None:
        editor = default_editor(network, model)
        return rule_of(editor).settings(editor=editor, **solve_of(network)), network
    if "network" in rule_of(settings.editor).needs and network is not None and not settings.modules:
        settings = settings.replace(modules=solve_of(network)["modules"])
    return settings, network


def settings_from(path: Path | None, kind: type[StoreSettings]) -> dict[str, Any]:
    """Settings by name from what `train --choose` wrote, the file or its folder; those at rest (None) are left out.

    kind: the settings of the store's rule, which may be the one of the file with wrappers around it. Raises
    BadInputError where it holds no settings, or one that `kind` lacks.
    """
    if path is None:
        return {}
    file, read = _chosen(path)
    found, editor = read.get("settings"), editor_from(path)
    if editor is not None and rule_of(editor).settings is not kind and core_of(kind().editor) != editor:
        raise BadInputError(
            f"the settings in {file} were chosen for the editing rule {editor}, but the store's rule has others; give "
            f"--editor {editor}, or leave --settings out"
        )
    try:
        known = msgspec.convert(found, kind)
    except msgspec.MsgspecError as error:
        raise _no_settings(file, error) from error
    return {name: getattr(known, name) for name in found or () if getattr(known, name) is not None}


def editor_from(path: Path | None) -> str | None:
    """The editing rule for which `train --choose` chose the settings of a file or folder; None where it says none.

    Raises BadInputError where there is no such file, UsageError where no rule has the name.
    """
    editor = None if path is None else _chosen(path)[1].get("editor")
    return None if editor is None else rule_of(str(editor)).name


def _chosen(path: Path) -> tuple[Path, dict[str, Any]]:
    file = path / CHOSEN if path.is_dir() else path
    try:
        return file, msgspec.json.decode(file.read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.MsgspecError) as error:
        raise _no_settings(file, error) from error


def _no_settings(file: Path, error: Exception) -> BadInputError:
    return BadInputError(f"{file} holds no settings ({error}); expected what `lifelong-edit train --choose` writes")


def editor_of(
    editor: str | None, model: str, *, hypernetwork: Path | None, settings: Path | None, modules: Sequence[str]
) -> str:
    """The rule of a new store: the one that is named, else that of the settings, else `default_editor`'s.

    settings: what `train --choose` wrote. A network that is given comes with its rule, whatever its settings were
    chosen with. Modules are named at the answer, and settings were chosen, for the rules of the ridge family. Raises
    what `editor_from` does.
    """
    chosen_for = None if hypernetwork else editor_from(settings)
    named = [*modules, *([] if settings is None else [str(settings)])]
    return editor or chosen_for or default_editor(hypernetwork or default_hypernetwork(model), model, named)


LARGE_FROM = 512
"""Width of the states from which a model is large: there subjects can be told apart by one reading of a layer.

On a model of 8 M parameters (256) `gradient` was ahead of `neurons`, on one of 135 M (576) far behind it.
"""


def default_editor(hypernetwork: str | Path | None, model: str, modules: Sequence[str] = ()) -> str:
    """The rule of a new store of which none is named: that of a network, `neurons` of a large decoder or a classifier.

    `gradient` of all others, of those about which nothing can be said yet, and where modules are named: of a decoder
    `neurons` would want them at the subject.
    """
    if hypernetwork is not None:
        return rule_of_network(Path(hypernetwork))
    if modules:
        return PLAIN
    from lifelong_edit.models.loading import kind_and_width  # imports torch

    kind, width = kind_and_width(model)
    return NEURONS if kind == "classify" or (kind == "causal" and is_large(width)) else PLAIN


def is_large(width: int | None) -> bool:
    """Whether a model with states of so many numbers is large; one of which they are not known is not."""
    return width is not None and width >= LARGE_FROM


def rule_of_network(folder: Path) -> str:
    """The rule that a network was trained for; `malmen` where its folder does not say."""
    if not (folder / "config.json").is_file():
        return TRAINED
    from lifelong_edit.editors.malmen.network import read_config  # imports torch

    return read_config(folder).rule


def default_hypernetwork(model: str) -> Path | None:
    """The folder of the network that was trained for a model and comes with the package, if there is one."""
    return atlas.hypernetwork_dir() if model == BUNDLED_MODEL else None


@functools.cache
def default_forecasters() -> dict[Kind, Forecaster]:
    """The forecasters that were fitted on the forgetting of the bundled model, by kind."""
    return read_forecasters(atlas.forecast_path())


@functools.cache
def default_scorer() -> Scorer:
    """The scorer of conflicts that was fitted on facts of the bundled model."""
    return read_scorer(atlas.conflicts_path())


def scorer_of(*places: str | Path | None) -> Scorer:
    """The scorer that `train` left in the first of these folders, or beside the first of these files, else the default.

    Raises BadInputError where what is there is no scorer.
    """
    folders = [Path(p).parent if Path(p).is_file() else Path(p) for p in places if p is not None]
    files = [folder / CONFLICTS for folder in folders]
    return next((read_scorer(file) for file in files if file.is_file()), default_scorer())
