"""The digest of the order in which rows were trained on."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from finetune_trainer.train import order


def chain(*steps: Sequence[Sequence[int]]) -> str:
    """The digest after these steps, each the rows of every rank."""
    found = ""
    for ranks in steps:
        found = order.after(found, [sum(parts) for parts in zip(*map(order.share, ranks), strict=True)])
    return found


def test_it_is_the_same_however_ranks_share_a_step() -> None:
    assert chain([[1, 2, 3, 4]], [[5, 6]]) == chain([[4, 1], [3, 2]], [[], [6, 5]])


@pytest.mark.parametrize(
    "other",
    [[[[5, 6]], [[1, 2, 3, 4]]], [[[1, 2, 3]], [[4, 5, 6]]], [[[1, 2, 3, 4, 4]], [[5, 6]]], [[[1, 2, 3, 4]]], [[[1, 2, 3, 7]], [[5, 6]]]],
    ids=["steps change places", "a row moves to another step", "a row comes twice", "a step is missing", "another row"],
)
def test_it_is_another_where(other: list[list[list[int]]]) -> None:
    assert chain(*other) != chain([[1, 2, 3, 4]], [[5, 6]])


def test_sums_of_256_ranks_are_exact_in_float32() -> None:
    assert (order.LIMIT - 1) * 256 < 2**24
    assert all(0 <= part < order.LIMIT and part == int(part) for part in order.share(range(5000)))
