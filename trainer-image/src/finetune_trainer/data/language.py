"""Which language each turn of a conversation is in, where the spec asks for some.

py3langid decides (140 languages, a model of 5 MB in its package). Its certainty is calibrated: of a short turn, of code or of a
label it is not sure, and such turns are let through.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from finetune_trainer.data.formats import Row, RowError
from finetune_trainer.exits import UserError

LOOKED_AT = 2000  # characters of a turn


class Languages:
    """Refuses rows with a turn that is, `percent` sure, in none of the languages `wanted` (ISO 639 codes; none: all are let through).

    Raises UserError for a code that is not known."""

    def __init__(self, wanted: Sequence[str], percent: float) -> None:
        self._wanted, self._percent = wanted, percent
        self._identifier = _identifier() if wanted else None
        if self._identifier and (unknown := sorted(set(wanted) - set(self._identifier.labels))):
            raise UserError(
                "LanguageUnknown",
                f"data.quality.languages: {', '.join(unknown)} is none of the languages that can be told apart",
                f"Take from {', '.join(sorted(self._identifier.labels))}.",
            )

    def check(self, row: Row) -> Row:
        """`row`. Raises RowError for one in another language."""
        for number, message in enumerate(row.messages, start=1):
            if self._identifier and message["role"] != "system":
                self._check(row.learnt if row.plain else f"turn {number} ({message['role']})", message["content"])
        if self._identifier and row.rejected:
            self._check("the rejected answer", row.rejected[-1]["content"])
        return row

    def _check(self, what: str, text: str) -> None:
        assert self._identifier
        found, sure = self._identifier.classify(text[:LOOKED_AT])
        if found not in self._wanted and 100 * sure >= self._percent:
            raise RowError(f"{what} is in another language: {found} ({100 * sure:.0f} % sure), not {', '.join(self._wanted)}")


def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # type: ignore[import-untyped]

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
