"""What is left out of the prepared data and why: counts of everything, examples of a few, in bounded memory."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from finetune_trainer.data.formats import Rejected
from finetune_trainer.exits import JsonObject

Kind = Literal["Invalid", "Duplicate", "NearDuplicate", "TooLong"]
LISTED = 1000
EXAMPLES = 3
GROUPS = 60
EXCERPT = 200
OTHER = "other reasons"
_PARTICULAR = re.compile(r"'[^']*'|\d[\d,.]*")


@dataclass(frozen=True)
class _Example:
    source: str
    row: int
    reason: str
    text: str


class Ledger:
    """Rows that are not used. A reason's group is its words up to a colon, without its numbers and quotations."""

    def __init__(self) -> None:
        self.invalid: list[Rejected] = []
        self.counts: Counter[Kind] = Counter()
        self._groups: Counter[tuple[Kind, str]] = Counter()
        self._examples: dict[tuple[Kind, str], list[_Example]] = {}

    def add(self, kind: Kind, item: Rejected, text: Callable[[], str]) -> None:
        """Count `item`; `text` gives what an example shows of the row."""
        self.counts[kind] += 1
        if kind == "Invalid" and len(self.invalid) < LISTED:
            self.invalid.append(item)
        group = (kind, _PARTICULAR.sub("…", item.reason.partition(": ")[0]))
        if group not in self._groups and len(self._groups) >= GROUPS:
            group = (kind, OTHER)
        self._groups[group] += 1
        examples = self._examples.setdefault(group, [])
        if len(examples) < EXAMPLES:
            examples.append(_Example(item.source, item.row, item.reason, excerpt(text())))

    def groups(self) -> list[JsonObject]:
        """Every group with its count and examples, the largest first."""
        return [
            {"kind": kind, "reason": reason, "count": count, "examples": [asdict(example) for example in self._examples[kind, reason]]}
            for (kind, reason), count in self._groups.most_common()
        ]

    def state(self) -> JsonObject:
        """All of it as JSON."""
        return {"invalid": [asdict(item) for item in self.invalid], "groups": self.groups()}

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Ledger:
        """The ledger whose `state` this is."""
        ledger = cls()
        ledger.invalid = [Rejected(**item) for item in state["invalid"]]
        for group in state["groups"]:
            key = (group["kind"], group["reason"])
            ledger.counts[group["kind"]] += group["count"]
            ledger._groups[key] = group["count"]
            ledger._examples[key] = [_Example(**example) for example in group["examples"]]
        return ledger

    def first_example(self) -> str:
        """One row of the largest group in words, '' where nothing was left out."""
        for group, _ in self._groups.most_common(1):
            item = self._examples[group][0]
            return f"{item.source} row {item.row}: {item.reason}"
        return ""

    def first_reasons(self, count: int = 5) -> str:
        """The first invalid rows in words."""
        return "; ".join(f"{item.source} row {item.row}: {item.reason}" for item in self.invalid[:count])


def excerpt(text: str) -> str:
    """One line of at most 200 characters."""
    line = " ".join(text[: 4 * EXCERPT].split())
    return line if len(line) <= EXCERPT else line[: EXCERPT - 1] + "…"
