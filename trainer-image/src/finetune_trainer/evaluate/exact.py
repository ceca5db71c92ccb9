"""ExactMatch: is the answer the reference, character by character?

White space at both ends is left out of both; case, punctuation and inner white space count.
"""

from __future__ import annotations


def exact_match(answer: str, reference: str) -> float:
    """1 where answer and reference are the same text, else 0."""
    return float(answer.strip() == reference.strip())
