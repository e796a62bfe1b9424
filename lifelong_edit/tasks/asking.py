"""Facts and prompts as questions, in each form in which a model is asked."""

from __future__ import annotations

from typing import Any

from lifelong_edit.errors import UsageError
from lifelong_edit.facts import GLUE, Fact, Probe, as_question, question_of
from lifelong_edit.models import (
    PLAIN,
    Form,
    Forms,
    LoadedModel,
    Outlined,
    Question,
    Turn,
    has_template,
    require_template,
    separator,
)
from lifelong_edit.settings import StoreSettings

SENTENCE_ENDS = ".!?…。！？"
Asked = Fact | Probe | str
"""A fact, a probe, or a prompt that stands alone, such as a phrasing of a fact."""


def question_in(model: Outlined, form: Form, asked: Asked) -> Question:
    """What is asked in one form: the prompt as it is, or as a turn (`facts.question_of`) after the system prompt."""
    if form == "plain":
        return asked if isinstance(asked, str) else asked.prompt
    return Turn(as_question(asked) if isinstance(asked, str) else question_of(asked), model.forms.system)


def questions_of(model: Outlined, asked: Asked) -> list[Question]:
    """The same in each form of the model, the leading one first."""
    return [question_in(model, form, asked) for form in model.forms.names]


def leading(model: Outlined, asked: Asked) -> Question:
    """The question in the leading form."""
    return question_in(model, model.forms.names[0], asked)


def form_of(question: Question) -> Form:
    """The form of a question."""
    return "chat" if isinstance(question, Turn) else "plain"


def text_of(question: Question) -> str:
    """What a question says, as a table or a log has it."""
    return question.text if isinstance(question, Turn) else question


def sentence_of(fact: Fact) -> str:
    """A fact as a sentence: its prompt, its target, a full stop."""
    target = fact.answer
    between = "" if target.startswith(GLUE) else separator(fact.prompt, target)
    said = (fact.prompt + between + target.removeprefix(GLUE)).strip()
    return said if said[-1] in SENTENCE_ENDS else said + "."


def settled(settings: StoreSettings, tokenizer: Any) -> StoreSettings:
    """Settings with the form that a new store's model is asked in, where they leave it open; see `StoreSettings.form`.

    Raises UsageError for turns without a chat template, and for a system prompt without turns.
    """
    if settings.form is None and has_template(tokenizer):
        settings = settings.replace(form="both")
    if settings.form in ("chat", "both"):
        require_template(tokenizer, f"the form {settings.form}")
    elif settings.system is not None:
        raise UsageError(
            "found a system prompt for a store whose model is asked in plain text, expected one with the form chat or "
            "both; leave it out, or choose another form"
        )
    return settings


def ready(settings: StoreSettings, loaded: LoadedModel) -> StoreSettings:
    """The settings with what they leave open settled by the model, and the model made ready to be asked in its form."""
    settings = settled(settings, loaded.tokenizer).placed(loaded.device)
    loaded.forms = forms_of(settings)
    return settings


def forms_of(settings: StoreSettings) -> Forms:
    """The forms of a store by its settings."""
    names: dict[str | None, tuple[Form, ...]] = {"chat": ("chat",), "both": ("plain", "chat")}
    return Forms(names[settings.form], settings.system) if settings.form in names else PLAIN
