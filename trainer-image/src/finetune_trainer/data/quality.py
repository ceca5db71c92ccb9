"""Which rows are worth learning from, and which split each belongs to.

Invariant: equal content is in one split only; the split of a row depends on its content and the seed alone.
"""

from __future__ import annotations

import hashlib
import heapq
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

from finetune_trainer.config import SplitConfig

CLOSED_SET = 50
DEFAULT_MIN_RESPONSE = 10
REPETITION_WORDS = 50
# How reasoning is written in the data sets that have it: in tags, before GSM8K's ####, or step by step.
REASONING = re.compile(r"<(think|thinking|reasoning|scratchpad)>|^#### |\bstep 1\b|\bstep by step\b", re.IGNORECASE | re.MULTILINE)
LOOKED_AT = 20_000  # characters of an answer


def repetition(answer: str) -> float:
    """Percent of an answer's word trigrams that were there before in it; 0 for answers of fewer than fifty words."""
    words = answer.split()
    if len(words) < REPETITION_WORDS:
        return 0.0
    trigrams = list(zip(words, words[1:], words[2:], strict=False))
    return 100 * (1 - len(set(trigrams)) / len(trigrams))


class Content(Protocol):
    """What is known of a row here: the digest of its content."""

    @property
    def digest(self) -> str: ...


R = TypeVar("R", bound=Content)


class Answers:
    """The distinct answers of many rows with how many rows have each, as long as they are few."""

    def __init__(self) -> None:
        self._seen: Counter[str] = Counter()
        self._rows = self._reasoned = 0

    def add(self, answer: str) -> None:
        """Count a row with this answer."""
        self._rows += 1
        self._reasoned += bool(REASONING.search(answer, 0, LOOKED_AT))
        label = answer.strip()
        if len(self._seen) <= CLOSED_SET or label in self._seen:
            self._seen[label] += 1

    @property
    def labels(self) -> dict[str, int]:
        """Rows of each answer, the most frequent first; empty where they are no small closed set."""
        return dict(self._seen.most_common()) if self.closed else {}

    @property
    def reasoned(self) -> bool:
        """Whether most show the way to what they say."""
        return 2 * self._reasoned > self._rows

    @property
    def closed(self) -> bool:
        """Whether they are a small closed set: labels."""
        return 0 < len(self._seen) <= min(CLOSED_SET, max(1, self._rows // 4))

    def without(self, known: Answers) -> list[str]:
        """Labels that are here and not in `known`."""
        return sorted(self._seen.keys() - known._seen.keys())

    @property
    def min_response(self) -> int:
        """The shortest answer worth keeping, in characters: 1 for labels, else 10."""
        return 1 if self.closed else DEFAULT_MIN_RESPONSE


def deduplicate(rows: Iterable[R]) -> tuple[list[R], list[tuple[R, R]]]:
    """The first row of each content, and the others, each with the one that it repeats."""
    first: dict[str, R] = {}
    repeats: list[tuple[R, R]] = []
    for row in rows:
        if (known := first.setdefault(row.digest, row)) is not row:
            repeats.append((row, known))
    return list(first.values()), repeats


def position(digest: str, seed: int) -> float:
    """Where a content falls in [0, 1) under a seed."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{digest}".encode()).digest()[:8]) / 2**64


def split(rows: Sequence[R], config: SplitConfig, carve: Sequence[str] = ("test", "validation")) -> dict[str, list[R]]:
    """Assign rows by hash; each wanted split of a non-zero share gets at least one content if there are enough."""
    shares = {name: float(getattr(config, name)) for name in ("train", "validation", "test")}
    total = shares["train"] + sum(shares[name] for name in carve)
    places = {row.digest: position(row.digest, config.seed) for row in rows}
    result: dict[str, list[R]] = {"train": [], "validation": [], "test": []}
    bounds: list[tuple[str, float]] = []
    edge = 0.0
    for name in carve:
        edge += shares[name] / total
        bounds.append((name, edge))
    for row in rows:
        place = places[row.digest]
        result[next((name for name, bound in bounds if place < bound), "train")].append(row)
    for name in carve:
        if shares[name] > 0 and not result[name] and len({row.digest for row in result["train"]}) > 1:
            lowest = min(result["train"], key=lambda row: places[row.digest]).digest
            result[name] = [row for row in result["train"] if row.digest == lowest]
            result["train"] = [row for row in result["train"] if row.digest != lowest]
    return result


def stratified(rows: Sequence[R], labels: Sequence[str], config: SplitConfig, carve: Sequence[str]) -> dict[str, list[R]]:
    """`split` of each label's rows by themselves, so that a rare label too is in every wanted split; in the order given."""
    groups: dict[str, list[R]] = {}
    for row, label in zip(rows, labels, strict=True):
        groups.setdefault(label, []).append(row)
    parts = [split(group, config, carve) for group in groups.values()]
    places = {id(row): place for place, row in enumerate(rows)}
    return {
        name: sorted((row for part in parts for row in part[name]), key=lambda row: places[id(row)])
        for name in ("train", "validation", "test")
    }


def sample(rows: Iterable[R], count: int, seed: int) -> list[R]:
    """`count` rows chosen by content hash, whatever their order; in the order given."""
    found = list(rows)
    chosen = {row.digest for row in heapq.nsmallest(count, found, key=lambda row: position(row.digest, seed))}
    return [row for row in found if row.digest in chosen][:count]


def keep_apart(splits: dict[str, list[R]], order: Sequence[str]) -> list[tuple[R, str]]:
    """Take every row out of a split whose content is in one before it in `order`; returns them with that split's name."""
    owner: dict[str, str] = {}
    removed: list[tuple[R, str]] = []
    for name in order:
        removed += [(row, owner[row.digest]) for row in splits[name] if row.digest in owner]
        splits[name] = [row for row in splits[name] if row.digest not in owner]
        owner |= dict.fromkeys((row.digest for row in splits[name]), name)
    return removed
