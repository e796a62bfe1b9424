"""Whether a generated text answers a question: what stands after the prompt, and where its words end."""

from __future__ import annotations

import unicodedata

from lifelong_edit.facts import GLUE
from lifelong_edit.models import Generation, LoadedModel, encode_prompt
from lifelong_edit.tasks.asking import SENTENCE_ENDS

# Tokens generated beyond the target's own: enough to see whether its last word ends there.
MARGIN = 3
# In a conversation the answer may stand at the end of a sentence.
CHAT_MARGIN = 16
HYPHENS = "-\u2010\u2011"
"""A letter behind one of these goes on with the word before it."""
# Scripts that are written without spaces: Thai to Khmer, kana, Han.
_UNSPACED = ((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x3400, 0x9FFF), (0xF900, 0xFAFF))


def continuation_text(loaded: LoadedModel, prompt: str, generation: Generation) -> str:
    """What a generation adds to its prompt, as text, with the space in front that some decoders drop."""
    front = encode_prompt(loaded.tokenizer, prompt)
    decode = loaded.tokenizer.decode
    before: str = decode(front, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    whole: str = decode([*front, *generation.ids], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    if whole.startswith(before):
        return whole[len(before) :]
    alone: str = decode(list(generation.ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return alone


def judge(prompt: str, target: str, text: str, stopped: bool) -> tuple[bool, bool]:
    """Whether `text`, generated after `prompt`, answers with `target`, and whether it then comes to an end.

    It must start with the target, after white space or not, and both ends of the target must be word boundaries:
    "Paris," answers "Paris", while "Parisian", "Paris-Nord" and "3.5" do not answer "Paris" and "3". A target that is
    to follow the prompt at once (`facts.GLUE`) may go on in its last word. The end is natural where the end of the
    text or sentence-ending punctuation follows at once.
    """
    said, wanted = _normal(text).lstrip(), _normal(target).removeprefix(GLUE).strip()
    glued = target.startswith(GLUE)
    if not wanted or not said.startswith(wanted) or (not glued and _inside_word(_normal(prompt), _normal(text))):
        return False, False
    rest = said[len(wanted) :]
    if _inside_word(wanted, rest):
        return False, False
    return True, rest[:1] in SENTENCE_ENDS if rest else stopped


def contains(target: str, text: str) -> bool:
    """Whether a text has the target anywhere in it, both ends of it at word boundaries, in whatever case."""
    said, wanted = _normal(text).casefold(), _normal(target).removeprefix(GLUE).strip().casefold()
    at = said.find(wanted) if wanted else -1
    while at >= 0:
        end = at + len(wanted)
        if not _inside_word(said[:at], wanted) and not _inside_word(wanted, said[end:]):
            return True
        at = said.find(wanted, at + 1)
    return False


def _normal(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _inside_word(left: str, right: str) -> bool:
    """Whether the boundary between two texts lies within a word or a number."""
    if not left or not right:
        return False
    if left[-1].isdigit() and right[0] in ".," and right[1:2].isdigit():
        return True
    if in_word(left[-1]) and right[0] in HYPHENS and right[1:2].isalpha() and in_word(right[1]):
        return True  # "Porto-Novo" is another city than "Porto"
    return in_word(left[-1]) and in_word(right[0])


def in_word(character: str) -> bool:
    """Whether a character is part of a word in a script that sets words apart by spaces."""
    code = ord(character)
    if any(first <= code <= last for first, last in _UNSPACED):
        return False
    return character == "_" or unicodedata.category(character)[0] in "LMN"
