"""Before a new store costs anything: what is refused at once.

Loading a model and tracing text through it take minutes on a large one. What can be told from the file system, the
settings, and the model's configuration and tokenizer is therefore told first. Imports torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lifelong_edit.editors.registry import rule_of
from lifelong_edit.errors import BadInputError
from lifelong_edit.facts import Fact, Probe
from lifelong_edit.facts.given import as_probes, as_texts
from lifelong_edit.models.loading import Outline, outline_of
from lifelong_edit.models.placement import where_tokens_go
from lifelong_edit.models.places import locate
from lifelong_edit.numerics.devices import resolve_dtype
from lifelong_edit.settings import StoreSettings
from lifelong_edit.tasks import forms_of, questions_of, settled, task_of
from lifelong_edit.timeline.defaults import default_preserved, default_text, start_of
from lifelong_edit.timeline.model import given_to, require_given


@dataclass(frozen=True)
class Start:
    """What a new store is made with, defaults filled in."""

    settings: StoreSettings
    hypernetwork: Path | None
    preserve: list[Probe]
    text: list[str]


def started(
    model: str,
    *,
    settings: StoreSettings | None = None,
    hypernetwork: str | Path | None = None,
    preserve: Iterable[Probe | Fact | Mapping[str, Any] | str] | None = None,
    text: Iterable[str] | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Start:
    """What a store for a model begins with, once all has been refused that can be without loading the model.

    Arguments and errors as of `Timeline.create`.
    """
    settings, network = start_of(model, settings, hypernetwork)
    probes = default_preserved(model, settings.editor) if preserve is None else as_probes(preserve)
    found = Start(settings, network, probes, default_text() if text is None else as_texts(text))
    require_fitting(
        model, settings, hypernetwork=network, preserve=probes, text=found.text, revision=revision,
        trust_remote_code=trust_remote_code,
    )  # fmt: skip
    return found


def require_fitting(
    model: str,
    settings: StoreSettings,
    *,
    hypernetwork: Path | None,
    preserve: Sequence[Probe],
    text: Sequence[str],
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> None:
    """Refuse, without loading the model, what a store for it could not be made or used with.

    Arguments and errors as of `Timeline.create`. Code that comes with a model is run by the loading alone, so of such
    a model neither modules nor prompts are looked at here.
    """
    resolve_dtype(settings.dtype, where_tokens_go(settings.device))
    given = given_to(hypernetwork, text)
    require_given(settings, given)
    if not any(part.strip() for part in text):
        raise BadInputError("found a text without any word, expected ordinary prose to measure; give another one")
    home, places = locate(model, revision), rule_of(settings.editor).places
    outline = None if trust_remote_code else outline_of(home, settings.modules, revision, places)
    if outline is None:
        return
    rule_of(settings.editor).require_kind(outline.family.kind, outline.modules)
    outline = replace(outline, forms=forms_of(settled(settings, outline.tokenizer)))
    require_given(settings, given, outline.modules)
    for probe in preserve:
        _require_room(outline, probe)


def _require_room(outline: Outline, probe: Probe) -> None:
    task = task_of(outline)
    try:
        for question in questions_of(outline, probe):
            if probe.target is None:
                task.encode_question(outline, question)
            else:
                task.encode(outline, question, probe.target)
    except BadInputError as error:
        raise BadInputError(
            f"found a preserved prompt that the model cannot take ({error}); change it or leave it out"
        ) from None
