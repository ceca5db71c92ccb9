"""TokenF1 and RougeL: how much of two texts is the same, 0…1, and the same whichever of them is the reference.

TokenF1 is SQuAD's F1 (Rajpurkar et al. 2016, evaluate-v1.1): the harmonic mean of the shares of either text's words that are in the other,
in any order. RougeL is ROUGE-L's F-measure (Lin 2004; the package rouge_score without its stemmer): words in the same order, with gaps.
Texts in ASCII score as those two score them, but where no word is left: then 1 for equal texts and else 0, and TokenF1 keeps the
articles of a text that is nothing else. Beyond ASCII, which rouge_score leaves out, letters and digits of all scripts count (`words`).
"""

from __future__ import annotations

import string
import unicodedata
from collections import Counter
from collections.abc import Sequence

from finetune_trainer.evaluate.words import normalised, parts, words

_ARTICLES = {"a", "an", "the"}
_LONG = 2  # times as many words, or fewer by as much, are told


def token_f1(answer: str, reference: str) -> tuple[float, str]:
    """The score, and what is wrong where it is below 1."""
    text, wanted = normalised(answer), normalised(reference)
    return _verdict(text, wanted, _squad_words(text), _squad_words(wanted), ordered=False)


def rouge_l(answer: str, reference: str) -> tuple[float, str]:
    """The score, and what is wrong where it is below 1."""
    text, wanted = normalised(answer), normalised(reference)
    return _verdict(text, wanted, words(text), words(wanted), ordered=True)


def _squad_words(text: str) -> list[str]:
    """Punctuation is taken out without a gap (`U.S.` is `us`), as SQuAD does, then the articles."""
    found = parts("".join(c for c in text if c not in string.punctuation and not unicodedata.category(c).startswith("P")))
    return [word for word in found if word not in _ARTICLES] or found


def _verdict(text: str, reference: str, found: Sequence[str], wanted: Sequence[str], *, ordered: bool) -> tuple[float, str]:
    if not found or not wanted:
        return (1.0, "") if text == reference else (0.0, "no word of the reference")
    shared = (Counter(found) & Counter(wanted)).total()
    common = _in_order(found, wanted) if ordered else shared
    score = 2 * common / (len(found) + len(wanted))
    return score, "" if score == 1 else _why(shared, len(found), len(wanted))


def _why(shared: int, found: int, wanted: int) -> str:
    if not shared:
        return "no word of the reference"
    if found > _LONG * wanted:
        return "partly right, more than twice as long as the reference"
    if _LONG * found < wanted:
        return "partly right, less than half as long as the reference"
    return "the reference's words in another order" if shared == found == wanted else "partly right"


def _in_order(found: Sequence[str], wanted: Sequence[str]) -> int:
    """Length of the longest common subsequence, by Hyyrö's bit vectors (2004): each word of one text costs a few operations on a number
    of as many bits as the other has words, so that 65,536 words against as many take about a second."""
    places: dict[str, int] = {}
    for index, word in enumerate(wanted):
        places[word] = places.get(word, 0) | 1 << index
    whole = row = (1 << len(wanted)) - 1
    for word in found:
        matched = row & places.get(word, 0)
        row = ((row + matched) | (row - matched)) & whole
    return (whole ^ row).bit_count()
