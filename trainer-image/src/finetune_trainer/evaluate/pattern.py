"""Regex: does the pattern find the same in the answer as in the reference?

What it finds is its first match, of a pattern with groups the first group, without white space at the ends. Matched by the package regex,
in its version 0, which is Python's `re` with a limit: a pattern that runs away on an answer scores 0 there, and one that does so on many
is refused.
"""

from __future__ import annotations

from finetune_trainer.evaluate.runaway import SECONDS, Runaways
from finetune_trainer.exits import UserError

_FIELD = "evaluation.metrics[].regex.pattern"
_SIMPLER = "Write it without a repetition inside a repetition, or with bounds: {1,80} for +."


class RanAway(Exception):
    """The pattern took too long for a text, or too much memory."""


class Pattern:
    """A compiled pattern, and on how many answers it has run away. `seconds` are of processor time for one text."""

    def __init__(self, pattern: str, seconds: float = SECONDS) -> None:
        """Raises UserError where it does not compile."""
        import regex  # not where the operator's tests run

        self._runaways = Runaways(seconds)
        try:
            self._compiled = regex.compile(pattern, regex.V0)
        except (regex.error, ValueError, OverflowError, RecursionError, MemoryError) as error:
            raise UserError("PatternInvalid", f"{_FIELD} does not compile: {error}: {pattern}", "Correct the pattern.") from error

    def first(self, text: str) -> str | None:
        """What is compared of a text; None: nothing (no match, or an empty one). Raises RanAway."""
        try:
            match = self._compiled.search(text, timeout=self._runaways.seconds)
        except (TimeoutError, MemoryError):
            raise RanAway from None
        found = match and match.group(1 if self._compiled.groups else 0)
        return str(found).strip() or None if found else None

    def check_reference(self, row: str, reference: str) -> None:
        """Raise UserError that names `row` where the pattern finds nothing in its reference."""
        try:
            if self.first(reference) is not None:
                return
        except RanAway:
            raise self._too_slow(f"the reference of test row {row}") from None
        raise UserError(
            "ReferenceInvalid", f"test row {row}: {_FIELD} finds nothing in its reference: {reference[:200]}",
            "Correct the row, or the pattern: its first match, or first group, must not be empty.",
        )  # fmt: skip

    def score(self, answer: str, reference: str) -> tuple[float, str]:
        """1 where the pattern finds the same in both, else 0, and why. Raises UserError once it ran away too often."""
        try:
            found, wanted = self.first(answer), self.first(reference)
        except RanAway:
            return self._runaways.score("the pattern", self._too_slow)
        if found is None:
            return 0.0, "no match of the pattern"
        return (1.0, "") if found == wanted else (0.0, "another match than the reference's")

    def _too_slow(self, what: str) -> UserError:
        return UserError("PatternTooSlow", f"{_FIELD} took longer than {self._runaways.seconds:g} s on {what}", _SIMPLER)
