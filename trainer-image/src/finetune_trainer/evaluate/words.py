"""Texts as metrics compare them: one form for what people read as the same, and words in any script.

Han, kana, Thai and the like are written without spaces between words: each of their characters, with its marks, counts as a word.
"""

from __future__ import annotations

import unicodedata
from functools import cache
from typing import Any

UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\u30fc\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}"
_INSIDE = r"\p{L}\p{N}\p{M}\u200c\u200d"  # of a word: joiners, too, which Persian and Indic scripts write within one
_WORD = rf"[{UNSPACED}]\p{{M}}*|[[\p{{L}}\p{{N}}]--[{UNSPACED}]][[{_INSIDE}]--[{UNSPACED}]]*"
_PART = rf"[{UNSPACED}]\p{{M}}*|[^\s{UNSPACED}]+"


def normalised(text: str) -> str:
    """NFKC, case folded, each stretch of white space one space, none at the ends."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(folded.split())


def words(text: str) -> list[str]:
    """Stretches of letters and digits of a normalised text; all else parts them."""
    return list(compiled(_WORD).findall(text))


def parts(text: str) -> list[str]:
    """What white space parts, whatever it is made of; unspaced characters one by one."""
    return list(compiled(_PART).findall(text))


@cache
def compiled(pattern: str) -> Any:
    """A pattern of ours, compiled by the package regex, whose sets know scripts."""
    import regex  # not where the operator's tests run

    return regex.compile(pattern, regex.V1)
