"""Solved training rows that may stand in a prompt before a question: `solved.jsonl`, in the order in which they are taken.

Content and seed alone decide which and in what order; where answers are labels, each comes once before any comes twice. A row of the test
split, a plain text, a row that is mixed in and one that no question opens are never among them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_trainer import layout
from finetune_trainer.data import quality
from finetune_trainer.data.formats import Message

if TYPE_CHECKING:  # who reads the file needs none of prepare's libraries
    from finetune_trainer.data.loading import Loaded
    from finetune_trainer.data.store import Record
    from finetune_trainer.data.templates import Encoded

FILE = "solved.jsonl"
MOST = 16  # that are kept: as many as evaluation.fewShot.examples may ask for
LOOKED_AT = 4 * MOST  # rows that are looked at for them


@dataclass(frozen=True)
class Solved:
    """A conversation that ends with its answer; `id` is its content hash, `tokens` how many it takes alone, and `system` how many of these
    are of what its system turn says."""

    id: str
    messages: tuple[Message, ...]
    tokens: int
    system: int = 0


class Choice:
    """Chooses among the rows of training before they are encoded, and learns what those take that are trained on as a whole."""

    def __init__(self, loaded: Loaded, seed: int, limit: int) -> None:
        """`limit` is that of a row's tokens: one that reaches it may have been cut."""
        own = {record.digest for record in loaded.uses["train"]}
        rows = [record for record in loaded.splits["train"] if record.digest in own]
        self._store, self._limit = loaded.store, limit
        self._records = ordered(rows, labels=loaded.labels, seed=seed)[:LOOKED_AT]
        self._looked_at = {record.digest for record in self._records}
        self._tokens: dict[str, int] = {}

    def add(self, item: Encoded) -> None:
        """A row that is trained on."""
        if item.row.digest in self._looked_at and item.longest < self._limit:
            self._tokens[item.row.digest] = len(item.conversations()[0].ids)

    def write(self, folder: Path, count: Callable[[str], int]) -> None:
        """Keep the first that a question opens; `count` gives the tokens of a text."""
        rows = self._store.rows(record for record in self._records if record.digest in self._tokens)
        with (folder / FILE).open("w") as stream:
            for row in islice((row for row in rows if asks(row.messages)), MOST):
                line = {
                    "id": row.digest,
                    "messages": row.messages,
                    "tokens": self._tokens[row.digest],
                    "system": count(system(row.messages)),
                }
                stream.write(json.dumps(line, ensure_ascii=False) + "\n")


def ordered(rows: Iterable[Record], *, labels: bool, seed: int) -> list[Record]:
    """Each content once, by its place under the seed; where answers are `labels`, the first row of each before the second of any."""
    first = {row.digest: row for row in rows}.values()
    placed = sorted(first, key=lambda row: quality.position(row.digest, seed))
    if not labels:
        return placed
    seen: Counter[str] = Counter()
    turns: dict[str, int] = {}
    for row in placed:
        turns[row.digest] = seen[row.label]
        seen[row.label] += 1
    return sorted(placed, key=lambda row: turns[row.digest])


def read(folder: Path) -> list[Solved] | None:
    """Those of a data folder; None of one that an older image prepared. Raises OSError where the volume fails."""
    try:
        lines = (folder / FILE).read_text().split("\n")
    except layout.MISSING:
        return None
    return [_solved(json.loads(line)) for line in lines if line.strip()]


def fitting(known: Sequence[Solved], count: int, room: int) -> list[Solved]:
    """The first `count` that fit together into `room` tokens; one that is too long for what is left of it is passed over."""
    taken: list[Solved] = []
    for one in known:
        if len(taken) < count and one.tokens <= room:
            taken.append(one)
            room -= one.tokens
    return taken


def system(messages: Sequence[Message]) -> str:
    """What the system turn of a conversation says; empty where it has none."""
    return messages[0]["content"] if messages[0]["role"] == "system" else ""


def asks(messages: Sequence[Message]) -> bool:
    """Whether a question opens a conversation, behind its system turn: only then may another one stand before it."""
    return next((message["role"] for message in messages if message["role"] != "system"), "") == "user"


def _solved(document: dict[str, Any]) -> Solved:
    messages = tuple({"role": str(m["role"]), "content": str(m["content"])} for m in document["messages"])
    return Solved(str(document["id"]), messages, int(document["tokens"]), int(document["system"]))
