"""Which rows are worth learning from, and which split each belongs to.

Invariant: equal content is in one split only; the split of a row depends on its content and the seed alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from finetune_trainer.config import SplitConfig
from finetune_trainer.data.formats import Rejected, Row

CLOSED_SET = 50
DEFAULT_MIN_RESPONSE = 10
Splits = dict[str, list[Row]]


def choose_min_response(rows: Sequence[Row]) -> int:
    """1 where the answers are a small closed set (labels), else 10 characters."""
    answers = {row.response.strip() for row in rows}
    return 1 if 0 < len(answers) <= min(CLOSED_SET, max(1, len(rows) // 4)) else DEFAULT_MIN_RESPONSE


def long_enough(rows: Iterable[Row], minimum: int) -> tuple[list[Row], list[Rejected]]:
    """Rows whose answer has at least `minimum` characters, and the others with the reason."""
    good: list[Row] = []
    bad: list[Rejected] = []
    for row in rows:
        length = len(row.response.strip())
        if length >= minimum:
            good.append(row)
        else:
            bad.append(Rejected(row.source, row.row, f"the answer has {length} characters, fewer than {minimum}"))
    return good, bad


def deduplicate(rows: Iterable[Row]) -> tuple[list[Row], int]:
    """The first row of each content, and how many were left out."""
    first: dict[str, Row] = {}
    count = 0
    for row in rows:
        count += 1
        first.setdefault(row.digest, row)
    return list(first.values()), count - len(first)


def position(digest: str, seed: int) -> float:
    """Where a content falls in [0, 1) under a seed."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{digest}".encode()).digest()[:8]) / 2**64


def split(rows: Sequence[Row], config: SplitConfig, carve: Sequence[str] = ("test", "validation")) -> Splits:
    """Assign rows by hash; each wanted split of a non-zero share gets at least one content if there are enough."""
    shares = {name: float(getattr(config, name)) for name in ("train", "validation", "test")}
    total = shares["train"] + sum(shares[name] for name in carve)
    places = {row.digest: position(row.digest, config.seed) for row in rows}
    result: Splits = {"train": [], "validation": [], "test": []}
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


def keep_apart(splits: Splits) -> int:
    """Take from train (and validation) every row whose content is also in test (or validation); returns how many."""
    sealed = {row.digest for row in splits["test"]}
    validation = [row for row in splits["validation"] if row.digest not in sealed]
    held = sealed | {row.digest for row in validation}
    train = [row for row in splits["train"] if row.digest not in held]
    removed = len(splits["validation"]) - len(validation) + len(splits["train"]) - len(train)
    splits["validation"], splits["train"] = validation, train
    return removed
