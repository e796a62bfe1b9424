"""Turns of a conversation as tokens: what the model's own chat template makes of them, and where an answer ends."""

from __future__ import annotations

from typing import Any

from jinja2.exceptions import TemplateError

from lifelong_edit.errors import BadInputError, UsageError
from lifelong_edit.facts import GLUE, mentions
from lifelong_edit.models.encoding import Encoded, check_length, continuation, span_within
from lifelong_edit.models.forms import Turn

# Short, and of letters alone: no template has a reason to change it.
_SAMPLE = "Yes"


def has_template(tokenizer: Any) -> bool:
    """Whether a tokenizer brings a chat template."""
    return bool(getattr(tokenizer, "chat_template", None))


def require_template(tokenizer: Any, wanted: str) -> None:
    """Raise UsageError where a tokenizer has no chat template. wanted: what needs one, such as "--form chat"."""
    if not has_template(tokenizer):
        raise UsageError(
            f"found a tokenizer without a chat template, expected one for {wanted}; ask this model in plain text, or "
            "take one that was tuned for conversations"
        )


def encode_turn(tokenizer: Any, turn: Turn) -> list[int]:
    """Tokens of a conversation up to where the answer begins: the template's own text, with what it puts in front.

    Raises BadInputError for a blank turn, for a conversation that the template refuses, and for one longer than the
    model's context.
    """
    return _prompt(tokenizer, turn)[1]


def encode_reply(tokenizer: Any, turn: Turn, answer: str, subject: str | None = None) -> Encoded:
    """Tokens of a conversation and of an answer, which ends with the template's end of a turn (`end_of_turn`).

    So an edit teaches where to stop as well. subject: see `turn_span`. Raises BadInputError as `encode_turn`, and for
    an empty answer.
    """
    answer = answer.removeprefix(GLUE).strip()
    if not answer:
        raise BadInputError(f"the target of prompt {turn.text!r} is empty; expected the answer to be taught")
    text, prompt = _prompt(tokenizer, turn)
    said = continuation(tokenizer, text, prompt, _between(tokenizer, turn, text) + answer)
    encoded = Encoded.of(prompt, [*said, *end_of_turn(tokenizer)], _span(tokenizer, text, turn, subject))
    check_length(tokenizer, encoded.ids, turn.text)
    return encoded


def turn_span(tokenizer: Any, turn: Turn, subject: str | None) -> tuple[int, int]:
    """Where the tokens of a subject begin and end within `encode_turn`'s, at its last mention in the last turn.

    (0, 0) where that does not mention it, or where a slow tokenizer cannot tell which token stands where.
    """
    return _span(tokenizer, _prompt(tokenizer, turn)[0], turn, subject)


def end_of_turn(tokenizer: Any) -> tuple[int, ...]:
    """The tokens with which a template ends what an assistant said: up to the first one that is a mark, not text.

    The tokenizer's end of text, if it has one, where the template puts no mark.
    """
    whole = _render(tokenizer, Turn("Is it?"), _SAMPLE)
    after: list[int] = _tokens(tokenizer, whole[whole.rfind(_SAMPLE) + len(_SAMPLE) :])
    marks = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    first = next((i for i, token in enumerate(after) if token in marks), None)
    if first is not None:
        return tuple(after[: first + 1])
    return () if tokenizer.eos_token_id is None else (int(tokenizer.eos_token_id),)


def _prompt(tokenizer: Any, turn: Turn) -> tuple[str, list[int]]:
    """A conversation as text and as tokens, checked."""
    require_template(tokenizer, "turns of a conversation")
    if not turn.text.strip():
        raise BadInputError("found a turn without text, expected a question; write it")
    text = _render(tokenizer, turn)
    ids = _tokens(tokenizer, text)
    check_length(tokenizer, ids, turn.text)
    return text, ids


def _render(tokenizer: Any, turn: Turn, answer: str | None = None) -> str:
    """The conversation as its template writes it: up to where the answer begins, or with an answer."""
    messages = [] if turn.system is None else [{"role": "system", "content": turn.system}]
    messages += [{"role": role, "content": text} for role, text in turn.before]
    messages.append({"role": "user", "content": turn.text})
    if answer is not None:
        messages.append({"role": "assistant", "content": answer})
    try:
        # Templates of models that think first have this switch; others do not look at it.
        text: str = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=answer is None, enable_thinking=False
        )
    except (TemplateError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise BadInputError(
            f"the model's chat template refuses a conversation ({reason}), expected user and assistant by turns and a "
            "system prompt only where the template has room for one; change the turns or leave the system prompt out"
        ) from None
    return text


def _between(tokenizer: Any, turn: Turn, text: str) -> str:
    """The white space that a template puts between where an answer begins and the answer, as far as there is any."""
    whole = _render(tokenizer, turn, _SAMPLE)
    if not whole.startswith(text):
        return ""
    rest = whole[len(text) :]
    found = rest[: max(0, rest.find(_SAMPLE))]
    return "" if found.strip() else found


def _span(tokenizer: Any, text: str, turn: Turn, subject: str | None) -> tuple[int, int]:
    said = turn.text.strip()  # templates may cut white space, but change nothing else
    found, start = mentions(said, subject or ""), text.rfind(said)
    if not found or start < 0 or not tokenizer.is_fast:
        return 0, 0
    return span_within(tokenizer, text, start + found[-1][0], start + found[-1][1])


def _tokens(tokenizer: Any, text: str) -> list[int]:
    # What stands in front of a text is in the template's own: a tokenizer that adds it would double it.
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids
