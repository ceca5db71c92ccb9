"""Iterables in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def batches(items: Iterable[T], count: int, size: Callable[[T], int], most: int) -> Iterator[list[T]]:
    """Lists of `count` items, or of fewer that come to `most` by their `size`; the last one shorter."""
    batch: list[T] = []
    held = 0
    for item in items:
        batch.append(item)
        held += size(item)
        if len(batch) == count or held >= most:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch
