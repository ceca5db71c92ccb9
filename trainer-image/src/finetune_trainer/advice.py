"""What a stage advises: each item a code, one sentence of what was found, and what may be done about it.

Advice follows from what was measured, and stops nothing. Thresholds are rules of thumb, named where they are used.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape

from finetune_trainer.exits import JsonObject

FEW_TEST_ROWS = 50  # a bootstrap of fewer rows says little of a share near 0 or 1
MOST, MOST_BYTES = 5, 1700  # that a result holds: it has 4 KiB in all


@dataclass(frozen=True)
class Advice:
    """`code` is for machines and stays the same; `message` says what was found, `fix` what may be done (both end in a full stop)."""

    code: str
    message: str
    fix: str

    @property
    def text(self) -> str:
        """Both sentences."""
        return f"{self.message} {self.fix}"


def few_test_rows(message: str) -> Advice:
    """The same, whichever stage finds that they are few."""
    return Advice("FewTestRows", message, "Bring a larger data.test, or a larger share in data.split.test.")


def told(every: Sequence[Advice]) -> list[JsonObject]:
    """As a result says it: the first items, as many as there is room for."""
    found: list[JsonObject] = []
    for item in every[:MOST]:
        found.append(asdict(item))
        if len(json.dumps(found, ensure_ascii=False).encode()) > MOST_BYTES:
            return found[:-1]
    return found


def read(said: object) -> list[Advice]:
    """What a result or manifest holds; nothing where an older one has none."""
    items = said if isinstance(said, list) else []
    return [Advice(str(item["code"]), str(item["message"]), str(item["fix"])) for item in items]


def listed(every: Sequence[Advice]) -> str:
    """The items as a list of a page; their texts are escaped. Empty where there is none."""
    items = "".join(f'<li>{escape(item.message)} <span class="quiet">{escape(item.fix)}</span></li>' for item in every)
    return f"<ul>{items}</ul>" if items else ""
