"""Contains: does the reference stand somewhere in the answer?

Both are normalised (`words.normalised`). At both ends of the place a word must begin and end: `cat` does not stand in `concatenate`.
Scripts without spaces have no such ends, and in Korean, whose particles follow a word without a space, the end is not looked at.
"""

from __future__ import annotations

from collections import Counter

from finetune_trainer.evaluate.words import UNSPACED, compiled, normalised, words
from finetune_trainer.exits import UserError

_LETTER = rf"[[\p{{L}}\p{{N}}\p{{M}}_]--[{UNSPACED}]]"  # of a word that has ends
_LAST = rf"[[\p{{L}}\p{{N}}\p{{M}}_]--[{UNSPACED}\p{{Hangul}}]]"
_MARK = r"\p{M}"


def contains(answer: str, reference: str) -> tuple[float, str]:
    """1 where the reference stands in the answer, else 0, and why."""
    text, sought = normalised(answer), normalised(reference)
    at = text.find(sought)
    while at >= 0:
        if _begins(text, at) and _ends(text, at + len(sought)):
            return 1.0, ""
        at = text.find(sought, at + 1)
    return 0.0, _why(text, sought)


def check_reference(row: str, reference: str) -> None:
    """Raise UserError that names `row` where there is nothing to look for."""
    if not normalised(reference):
        why = f"test row {row}: metric Contains has nothing to look for: its reference is empty"
        raise UserError("ReferenceInvalid", why, "Correct the row.")


def _begins(text: str, at: int) -> bool:
    return at == 0 or not (_is(_LETTER, text[at - 1]) and _is(_LETTER, text[at]))


def _ends(text: str, end: int) -> bool:
    if end == len(text):
        return True
    return not (_is(_MARK, text[end]) or (_is(_LAST, text[end - 1]) and _is(_LETTER, text[end])))


def _is(pattern: str, character: str) -> bool:
    return compiled(pattern).fullmatch(character) is not None


def _why(text: str, sought: str) -> str:
    wanted = Counter(words(sought))
    found = (wanted & Counter(words(text))).total()
    if not found:
        return "no word of the reference"
    return "the reference's words, but not as one" if found == wanted.total() else "some of the reference's words"
